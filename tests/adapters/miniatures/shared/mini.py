"""What the miniature hosts share: data, a model, and a record of what was drawn and predicted.

It knows nothing of kcd. Tests work out from the record alone what should have been drawn.

MINI_DEVICE and MINI_AMP (a dtype's name) say where the hosts train and how; MINI_N how many samples there are. With
MINI_STEPS, a file, no record is made, which would wait for a device, but a note of every step: how many samples, and
from which lines the host waited for the device since the step before.
"""

import atexit
import json
import os
import warnings

import numpy as np
import torch

N, CLASSES = int(os.environ.get("MINI_N", 98)), 5
DEVICE, AMP, STEPS = (os.environ.get(f"MINI_{name}") for name in ("DEVICE", "AMP", "STEPS"))
_RECORD, _WAITED = [], []


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

    def drawn(self, labels):
        """The indices of the batch with these labels. What was fetched besides, to rehearse mixing, is left out."""
        labels = labels.tolist()
        while [self.targets[i] for i in self.fetched[: len(labels)]] != labels:
            self.fetched.pop(0)
        return [self.fetched.pop(0) for _ in labels]


def model():
    return on_device(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, CLASSES)))


def distilled(student, teacher, temperature):
    """The squared temperature times KL, averaged over a batch."""
    p, q = (torch.log_softmax(logits / temperature, 1) for logits in (student, teacher))
    return (q.exp() * (q - p)).sum(1).mean() * temperature**2


class Student(torch.nn.Sequential):
    """The same as `model`; returns what ``gives(features, logits)`` makes of them."""

    def __init__(self, gives):
        super().__init__(*model())
        self.gives = gives

    def forward(self, images, is_feat=True):
        logits = super().forward(images)
        return self.gives(images, logits) if is_feat else logits


class Teacher(torch.nn.Module):
    """Returns what ``gives(features, logits)`` makes of them, and counts the rows that it is called with."""

    def __init__(self, gives=lambda features, logits: logits):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8), torch.nn.BatchNorm1d(8))
        self.head = torch.nn.Linear(8, CLASSES)
        self.gives, self.rows = gives, 0

    def forward(self, images, **_):
        self.rows += len(images)
        return self.gives(*self.answer(images))

    def answer(self, images):
        features = self.body(images)
        return features, self.head(features)

    def told(self, images, logits):
        """For the record: the logits that the host has for these images, those of all of them, and rows since the last."""
        rows, self.rows = self.rows, 0
        return {"taught": logits.detach(), "whole": self.answer(images)[1].detach(), "rows": rows}


def on_device(x):
    """A model or a tensor, moved as ``.cuda()`` does."""
    return x if DEVICE is None else x.to(DEVICE)


def autocast():
    if AMP is None:
        return torch.autocast("cpu", enabled=False)
    return torch.autocast(torch.device(DEVICE or "cpu").type, getattr(torch, AMP))


def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)


def seed():
    torch.set_num_threads(1)
    torch.manual_seed(3)
    np.random.seed(3)
    if STEPS and "cuda" in (DEVICE or ""):
        torch.cuda.set_sync_debug_mode("warn")
        warnings.simplefilter("always")
        warnings.showwarning = _waited


def _waited(message, category, filename, lineno, file=None, line=None):
    if "called a synchronizing" in str(message):
        _WAITED.append(f"{filename}:{lineno}")


def record(phase, epoch, index, image, logits=None, **more):
    """Phase, epoch (from 1), indices, images as they arrived, and the student's logits for them."""
    if STEPS:
        _RECORD.append({"phase": phase, "epoch": epoch, "rows": len(index), "waited": _WAITED.copy()})
        if logits is not None:
            _RECORD[-1] |= {"device": logits.device.type, "dtype": str(logits.dtype).removeprefix("torch.")}
        _WAITED.clear()
        return
    more = {name: x.double().numpy() if isinstance(x, torch.Tensor) else x for name, x in more.items()}
    item = {"phase": phase, "epoch": epoch, "index": torch.as_tensor(index).tolist(), **more}
    item["image"] = (image.detach() * 255).round().numpy().astype(np.uint8)
    item["logits"] = None if logits is None else logits.detach().double().numpy()
    _RECORD.append(item)


def weights(model):
    if not STEPS:
        _RECORD.append({"phase": "weights", "state": {k: v.numpy() for k, v in model.state_dict().items()}})


def _write():
    if _RECORD and STEPS:
        with open(STEPS, "w") as file:
            json.dump(_RECORD, file)
    elif _RECORD:
        rank = os.environ.get("MINI_RANK", os.environ.get("RANK", "0"))
        with open(f"{os.environ['MINI_RECORD']}.{rank}", "wb") as file:
            np.save(file, np.array(_RECORD, dtype=object), allow_pickle=True)


atexit.register(_write)
