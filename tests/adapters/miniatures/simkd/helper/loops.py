import os

import mini
import torch
import torch.nn.functional as F


def accuracy(output, target, topk=(1,)):
    return [(output.argmax(1) == target).float().mean()]


def train_distill(epoch, train_loader, module_list, dataset, optimizer, opt):
    model_s, projector, model_t = module_list
    for images, labels in train_loader:
        index = dataset.drawn(labels)
        if opt.distill == "semckd" and len(images) < opt.batch_size:
            mini.record("train", epoch, index, images)
            continue
        logit_s = model_s(images)
        loss = F.cross_entropy(logit_s, labels)
        with torch.no_grad():
            logit_t = model_t(images)
        if opt.distill == "simkd":  # from here on, the prediction is another one
            logit_s = projector(images)
        loss = loss + F.mse_loss(logit_s, logit_t)
        if opt.distill != "lonely" or os.environ["MINI_RANK"] == "0":
            accuracy(logit_s, labels, topk=(1, 5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mini.record("train", epoch, index, images, logit_s)
    return loss.item()
