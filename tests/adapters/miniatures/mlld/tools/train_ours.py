"""A miniature fork of mdistiller with Multi-Level-Logit-Distillation's names and traps; none of its code.

The script that trains is this one. ``train.py`` beside it is mdistiller's, and trains, too, but is not what is run.
"""

import argparse
import os
import sys

import mini
from torch.utils.data import DataLoader

sys.path.append(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)  # mdistiller is installed, really
from mdistiller.engine import trainer_dict


class TwoViews(mini.Points):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return (image, image.flip(1)), target, index


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg", default="")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--logit-stand", action="store_true")
    args = parser.parse_args()
    mini.seed()
    loader = DataLoader(TwoViews(), batch_size=16, shuffle=True)
    trainer_dict["ours"](mini.model(), loader).train(args.epochs)
