import mini
import torch
import torch.nn.functional as F

from .util import accuracy


def train_vanilla(epoch, train_loader, model, criterion, optimizer, opt):
    for images, target, _ in train_loader:
        output = model(images)
        accuracy(output, target, topk=(1, 2))
        optimizer.zero_grad()
        criterion(output, target).backward()
        optimizer.step()


def train_distill(epoch, train_loader, module_list, criterion_cls, optimizer, opt):
    model_s, head = module_list[0], module_list[1]
    for images, target, index in train_loader:
        logit_s, logit_h = model_s(images), head(images)
        with torch.no_grad():
            logit_t = module_list[-1](images)
        loss = criterion_cls(logit_s, target) + criterion_cls(logit_h, target)
        loss = loss + F.kl_div(F.log_softmax(logit_s, 1), F.softmax(logit_t, 1), reduction="batchmean")
        accuracy(logit_h, target)  # an auxiliary head's, before the student's
        accuracy(logit_s, target, topk=(1, 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mini.record("train", epoch, index, images, logit_s)
