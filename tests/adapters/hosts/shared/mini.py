"""What the miniature hosts share: data, a model, and a record of what was drawn and predicted.

It knows nothing of kcd. Tests work out from the record alone what should have been drawn.
"""

import atexit
import os

import numpy as np
import torch

N, CLASSES = 98, 5
_RECORD = []


def images():
    return np.random.default_rng(0).integers(0, 256, (N, 4, 4, 3), dtype=np.uint8)


def labels():
    return np.random.default_rng(1).integers(0, CLASSES, N).tolist()


class Points(torch.utils.data.Dataset):
    """Keeps its images in ``data``; remembers which were fetched (in this process)."""

    def __init__(self):
        self.data, self.targets, self.fetched = images(), labels(), []

    def __getitem__(self, index):
        self.fetched.append(index)
        return torch.from_numpy(self.data[index]).float() / 255, self.targets[index]

    def __len__(self):
        return len(self.targets)


def model():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, CLASSES))


def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)


def seed():
    torch.set_num_threads(1)
    torch.manual_seed(3)
    np.random.seed(3)


def record(phase, epoch, index, image, logits=None, **more):
    """Phase, epoch (from 1), indices, images as they arrived, and the student's logits for them."""
    item = {"phase": phase, "epoch": epoch, "index": torch.as_tensor(index).tolist(), **more}
    item["image"] = (image.detach() * 255).round().numpy().astype(np.uint8)
    item["logits"] = None if logits is None else logits.detach().double().numpy()
    _RECORD.append(item)


def weights(model):
    _RECORD.append({"phase": "weights", "state": {k: v.numpy() for k, v in model.state_dict().items()}})


def _write():
    if _RECORD:
        rank = os.environ.get("MINI_RANK", "0")
        with open(f"{os.environ['MINI_RECORD']}.{rank}", "wb") as file:
            np.save(file, np.array(_RECORD, dtype=object), allow_pickle=True)


atexit.register(_write)
