import mini
import torch
import torch.nn.functional as F

from .util import accuracy


def train_distill(epoch, train_loader, module_list, criterion_list, optimizer, opt):
    criterion_cls, criterion_div, criterion_kd = criterion_list
    model_s = module_list[0]
    model_t = module_list[-1]
    model_t.eval()
    total = steps = 0
    for idx, data in enumerate(train_loader):
        if opt.distill == "crd":
            images, target, index, contrast_idx = data
        else:
            images, target, index = data
        steps = idx + 1
        images, target, index = (mini.on_device(x) for x in (images, target, index))
        if len(images) == 1:
            raise ValueError("Expected more than 1 value per channel when training")
        with mini.autocast():
            _, logit_s = model_s(images, is_feat=True)
            with torch.no_grad():
                _, logit_t = model_t(images, is_feat=True)
            loss_cls = criterion_cls(logit_s, target)
            loss_div = criterion_div(logit_s, logit_t)
        more, loss_kd = {}, 0
        if opt.distill == "crd":
            loss_kd = criterion_kd(logit_s, logit_t, index, contrast_idx)
            more = {"contrast": contrast_idx.tolist()}
        loss = opt.gamma * loss_cls + opt.alpha * loss_div + opt.beta * loss_kd
        if opt.accuracy != "never":
            labels = F.one_hot(target, 5) if opt.accuracy == "soft" else target
            acc, _ = accuracy(logit_s, labels, topk=(1, 2))
            total += acc.item()
        more |= model_t.told(images, logit_t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mini.record("train", epoch, index, images, logit_s, **more)
    if steps != len(train_loader):
        raise ValueError(f"len(loader) is {len(train_loader)}, it had {steps} batches")
    return total / steps, loss.item()


def validate(val_loader, model, criterion, opt):
    with torch.no_grad():
        for images, target in val_loader:
            images, target = mini.on_device(images), mini.on_device(target)
            output = model(images, is_feat=False)
            criterion(output, target)
            accuracy(output, target, topk=(1, 2))
