"""A miniature with mdistiller's names, signatures and traps; none of its code."""

import argparse
import os

import mini
import torch
from mdistiller.distillers import distiller_dict
from mdistiller.engine.trainer import BaseTrainer
from torch.utils.data import DataLoader


class Instance(mini.Points):
    def __getitem__(self, index):
        return (*super().__getitem__(index), index)


class Integers(torch.utils.data.Dataset):
    """No raw images to mix, and samples of int64, which have no mixture."""

    def __getitem__(self, index):
        return torch.from_numpy(mini.images()[index]).long(), mini.labels()[index], index

    def __len__(self):
        return mini.N


def logits_first(features, logits):
    return logits, {"pooled_feat": features}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg", default="")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--context", default=None)
    parser.add_argument("--whole-numbers", action="store_true")
    parser.add_argument("opts", nargs="*", default=[])
    args = parser.parse_args()
    mini.seed()
    import wandb

    wandb.init(project="mini")
    loader = DataLoader(
        Integers() if args.whole_numbers else Instance(),
        batch_size=16,
        shuffle=True,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context=args.context,
    )
    opts = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
    models = [mini.model()]
    if "DISTILLER.TYPE" in opts:
        models = [mini.Student(logits_first), mini.on_device(mini.Teacher(logits_first))]
    distiller = torch.nn.DataParallel(distiller_dict[opts.get("DISTILLER.TYPE", "NONE")](*models))
    os.makedirs("out", exist_ok=True)
    BaseTrainer("out", distiller, loader).train(args.epochs, resume=args.resume)
