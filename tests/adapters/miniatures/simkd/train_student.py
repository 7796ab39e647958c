"""A miniature with SimKD's names, signatures and traps; none of its code."""

import argparse
import os

import mini
import tensorboard_logger as tb_logger
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from dataset.imagenet_dali import get_dali_data_loader
from helper.loops import train_distill as train
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--distill", default="kd")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--dali", default=None)
    parser.add_argument("--multiprocessing-distributed", action="store_true")
    opt = parser.parse_args()
    if opt.dali:
        get_dali_data_loader(opt)
    if opt.multiprocessing_distributed:
        opt.init = "file://" + os.environ["MINI_RECORD"] + ".store"
        mp.spawn(main_worker, nprocs=2, args=(opt,))
    else:
        main_worker(0, opt)


def main_worker(rank, opt):
    mini.seed()
    os.environ["MINI_RANK"] = str(rank)
    dataset = mini.Points()
    sampler = None
    if opt.multiprocessing_distributed:
        dist.init_process_group("gloo", init_method=opt.init, world_size=2, rank=rank)
        sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=opt.batch_size, shuffle=sampler is None, sampler=sampler)
    logger = tb_logger.Logger(logdir="tb", flush_secs=2)
    model_s, projector, model_t = mini.model(), mini.model(), mini.model()
    optimizer = mini.optimizer(torch.nn.ModuleList([model_s, projector]))
    for epoch in range(1, opt.epochs + 1):
        if sampler is not None:
            sampler.set_epoch(epoch)
        loss = train(epoch, loader, [model_s, projector, model_t], dataset, optimizer, opt)
        logger.log_value("train_loss", loss, epoch)
    if opt.multiprocessing_distributed:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
