"""A miniature with timm's names, signatures and traps; none of its code."""

import argparse
import os

import mini
import torch
from timm.data import create_loader
from timm.scheduler import create_scheduler_v2
from timm.task import LogitDistillationTask, TokenDistillationTask, resume_task_checkpoint
from timm.utils import CheckpointSaver

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--kd-model-name")
parser.add_argument("--kd-distill-type", default="logit")
parser.add_argument("--no-prefetcher", action="store_true")
parser.add_argument("--grad-accum-steps", type=int, default=1)
parser.add_argument("--sched-on-updates", action="store_true")
parser.add_argument("--resume", default="")
parser.add_argument("--smoothing", type=float, default=0.1)


def train_one_epoch(epoch, loader, dataset, optimizer, args, task, scheduler):
    accumulate = args.grad_accum_steps
    updates = -(-len(loader) // accumulate)
    task.trainable_module.train()
    done, last = epoch * updates, len(loader) - 1
    total = 0.0
    optimizer.zero_grad()
    for batch, (images, target) in enumerate(loader):
        image = images if args.no_prefetcher else images * 0.25 + 0.5
        index = dataset.drawn(target)
        result = task(images, target)
        (result["loss"] / accumulate).backward()
        total += result["loss"].item()
        mini.record("train", epoch + 1, index, image, result["output"], **result["told"])
        if batch != last and (batch + 1) % accumulate:
            continue
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        scheduler.step_update(num_updates=done)
        print("lr", optimizer.param_groups[0]["lr"])
    print(f"epoch {epoch} had {batch + 1} batches of {last + 1}")
    return total


def main():
    args = parser.parse_args()
    mini.seed()
    distributed = "WORLD_SIZE" in os.environ
    if distributed:
        torch.distributed.init_process_group("gloo")
    dataset = mini.Points()
    loader = create_loader(dataset, 16, not args.no_prefetcher, distributed)
    student = mini.model()
    kind = {"logit": LogitDistillationTask, "token": TokenDistillationTask}[args.kd_distill_type]
    task = kind(
        student, mini.on_device(mini.Teacher()), torch.nn.CrossEntropyLoss(label_smoothing=args.smoothing)
    )
    if distributed:
        task.prepare_distributed()
    optimizer = mini.optimizer(student)
    start = resume_task_checkpoint(task, args.resume, optimizer=optimizer) if args.resume else 0
    updates = -(-len(loader) // args.grad_accum_steps)
    scheduler, epochs = create_scheduler_v2(
        optimizer, args.epochs, step_on_epochs=not args.sched_on_updates, updates_per_epoch=updates
    )
    if start and args.sched_on_updates:
        scheduler.step_update(start * updates)
    elif start:
        scheduler.step(start)
    os.makedirs("out", exist_ok=True)
    saver = None
    if not distributed or torch.distributed.get_rank() == 0:
        saver = CheckpointSaver(student, optimizer, "out")
    for epoch in range(start, epochs):
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)
        metric = train_one_epoch(epoch, loader, dataset, optimizer, args, task, scheduler)
        with torch.no_grad():
            student(torch.zeros(2, 4, 4, 3))
        if saver is not None:
            saver.save_checkpoint(epoch, metric=metric)
        scheduler.step(epoch + 1, metric)
    mini.weights(student)
    if distributed:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
