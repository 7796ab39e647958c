"""A miniature with RepDistiller's names, signatures and traps; none of its code."""

import argparse

import mini
import tensorboard_logger as tb_logger
import torch
from crd.criterion import CRDLoss
from dataset.cifar100 import get_cifar100_dataloaders, get_cifar100_dataloaders_sample
from helper.loops import train_distill as train
from helper.loops import validate
from helper.pretrain import init
from torch.utils.data import DataLoader


def features_first(features, logits):
    return [features], logits


class DistillKL(torch.nn.Module):
    def __init__(self, T):
        super().__init__()
        self.T = T

    def forward(self, y_s, y_t):
        return mini.distilled(y_s, y_t, self.T)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--distill", default="kd")
    parser.add_argument("--mode", default="exact")
    parser.add_argument("-r", "--gamma", type=float, default=0.1)
    parser.add_argument("-a", "--alpha", type=float, default=0.9)
    parser.add_argument("-b", "--beta", type=float, default=1)
    parser.add_argument("--kd_T", type=float, default=4)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--init_epochs", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--anew", default="", choices=["", "loader", "data", "beside"])
    parser.add_argument("--accuracy", default="hard", choices=["hard", "soft", "never"])
    opt = parser.parse_args()
    mini.seed()
    logger = tb_logger.Logger(logdir="tb", flush_secs=2)
    if opt.distill == "crd":
        train_loader, val_loader, n_data = get_cifar100_dataloaders_sample(
            batch_size=opt.batch_size, num_workers=opt.num_workers, k=8, mode=opt.mode
        )
    else:
        train_loader, val_loader, n_data = get_cifar100_dataloaders(
            batch_size=opt.batch_size, num_workers=opt.num_workers, is_instance=True
        )
    model_s, model_t = mini.Student(features_first), mini.on_device(mini.Teacher(features_first))
    criterion_kd = CRDLoss(n_data) if opt.distill == "crd" else None
    if opt.distill == "abound":
        init(model_s, model_t, None, None, train_loader, logger, opt)
    optimizer = mini.optimizer(model_s)
    criteria = [torch.nn.CrossEntropyLoss(), DistillKL(opt.kd_T), criterion_kd]
    loaders = []
    for epoch in range(1, opt.epochs + 1):
        if opt.anew == "loader":
            train_loader = DataLoader(train_loader.dataset, batch_size=opt.batch_size, shuffle=True)
        elif opt.anew:
            if opt.anew == "beside":
                loaders.append(train_loader)
            train_loader, _, _ = get_cifar100_dataloaders(opt.batch_size, opt.num_workers, is_instance=True)
        acc, loss = train(epoch, train_loader, [model_s, model_t], criteria, optimizer, opt)
        logger.log_value("train_acc", acc, epoch)
        logger.log_value("train_loss", loss, epoch)
        validate(val_loader, model_s, criteria[0], opt)
    mini.weights(model_s)


if __name__ == "__main__":
    main()
