"""Small data sets and naive references for the loader's tests. At module level, so that workers can unpickle them."""

import datetime
import json
import os
import time
from collections import namedtuple
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import hypothesis
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import kcd_core as kcd
from kcd_core.base import distributed

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
CLASSES = 5
Pair = namedtuple("Pair", "image target")


def examples(usual):
    """How many examples a property draws that is dearer, or cheaper, than others; in the same proportion in any profile."""
    return hypothesis.settings(max_examples=usual * hypothesis.settings.default.max_examples // 60)


def images_of(n, shape=(4, 4, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def logits_of(indices, epoch, seed=0):
    """The logits that the pretended student gives these samples in this epoch: a function, so no state."""
    return torch.from_numpy(_table(epoch, seed)[np.asarray(indices)])


@lru_cache
def _table(epoch, seed):
    return np.random.default_rng([seed, epoch]).normal(0, 2, (1024, CLASSES)).astype(np.float32)


def entropy_of(logits):
    x = np.asarray(logits, np.float64)
    x = x - x.max(1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    return -(np.exp(log_p) * log_p).sum(1)


class Cifar(Dataset):
    """Like torchvision's: uint8 HWC images in ``.data``; targets are the indices."""

    def __init__(self, n, transform=None, shape=(4, 4, 3)):
        self.data = images_of(n, shape)
        self.targets = list(range(n))
        self.transform = transform

    def __getitem__(self, index):
        image, target = self.data[index], self.targets[index]
        image = np.ascontiguousarray(image) if self.transform is None else self.transform(image)
        return image, target

    def __len__(self):
        return len(self.data)


class Mnist(Dataset):
    """Like torchvision's: a uint8 tensor [N, 28, 28] in ``.data`` and a tensor of targets."""

    def __init__(self, n):
        self.data = torch.from_numpy(images_of(n, (28, 28)))
        self.targets = torch.arange(n)

    def __getitem__(self, index):
        image, target = self.data[index], int(self.targets[index])
        return torch.from_numpy(image.numpy().copy()), target

    def __len__(self):
        return len(self.data)


class Plain:
    """No ``Dataset``, no ``.data``: (float image, index) as ``kind`` packs them."""

    def __init__(self, n, kind="tuple"):
        self.images = torch.from_numpy(images_of(n, (3, 4)).astype(np.float32))
        self.kind = kind

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index].clone()
        if self.kind == "tensor":
            image[0, 0] = index
            return image
        if self.kind == "dict":
            return {"image": image, "target": index, "name": f"sample {index}"}
        if self.kind == "namedtuple":
            return Pair(image, index)
        if self.kind == "list":
            return [image, index]
        if self.kind == "nested":
            return image, {"target": index, "twice": (index, 2 * index)}
        return image, index


class Batched(Plain):
    """With a batched fetch of its own."""

    calls = 0

    def __getitems__(self, indices):
        self.calls += 1
        return [self[i] for i in indices]


def index_of(batch):
    """The indices of the samples in a batch of one of these data sets."""
    if isinstance(batch, torch.Tensor):
        return batch[:, 0, 0].long().tolist()
    if isinstance(batch, dict):
        return batch["target"].tolist()
    target = batch[1]
    if isinstance(target, dict):
        target = target["target"]
    return target.tolist()


def same(a, b):
    """Whether two batches are identical in type and content."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def identical_state(a, b):
    """In all but what a run cost: no two take the same time."""
    return same(flat(a), flat(b))


def flat(state):
    if isinstance(state, dict):
        return {k: flat(v) for k, v in state.items() if k != "account"}
    return state.clone() if isinstance(state, torch.Tensor) else state


SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=3, period=1)


def wrap(dataset, *, schedule=SCHEDULE, batch_size=8, shuffle=True, seed=3, kcd_options=None, **options):
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, **options)
    return kcd.wrap_loader(loader, schedule=schedule, seed=seed, **(kcd_options or {}))


def run_epoch(loader, *, end=True, seen=None):
    """One epoch of the loop in the README. Gives the indices of each batch."""
    batches = []
    for batch in loader:
        indices = index_of(batch)
        batches.append(indices)
        if seen is not None:
            seen(indices, batch)
        loader.record(logits_of(indices, loader.epoch))
    if end:
        loader.end_epoch()
    return batches


class Naive:
    """The method, slowly: every recording in a list, a full sort, a mixed copy of all images."""

    def __init__(self, n, schedule=SCHEDULE, images=None, alpha=0.03, min_weight=0.7, fresh=False):
        self.n, self.schedule, self.alpha, self.min_weight, self.fresh = n, schedule, alpha, min_weight, fresh
        self.recorded = [[] for _ in range(n)]
        self.kept = list(range(n))
        self.original = None if images is None else np.array(images)
        self.images = None if images is None else self.original.copy()

    def record(self, indices, values):
        for i, value in zip(indices, values, strict=True):
            self.recorded[i].append(float(value))

    @property
    def value(self):
        return np.array([np.mean(r) if r else np.nan for r in self.recorded])

    @property
    def count(self):
        return np.array([len(r) for r in self.recorded])

    def stage(self):
        score = np.array([np.mean(r) * len(r) ** self.alpha if r else np.inf for r in self.recorded])
        ranking = sorted(range(self.n), key=lambda i: (-score[i], i))
        previous, target = len(self.kept), self.schedule.target(self.n, len(self.kept))
        length = max(0, previous - target)
        self.dropped = ranking[target : target + length]
        self.tail = ranking[max(0, target - length) : target] if length else []
        self.kept = sorted(ranking[:target])
        if self.images is not None:
            before = self.original if self.fresh else self.images
            now = before.copy()
            w_min, span = np.float32(self.min_weight), np.float32(1 - self.min_weight)
            for i, (a, b) in enumerate(zip(self.tail, self.dropped, strict=False)):
                w = min(np.float32(1), span * (np.float32(length - i) / np.float32(length)) + w_min)
                mixed = w * before[a].astype(np.float32) + np.float32(1 - float(w)) * before[b].astype(
                    np.float32
                )
                now[a] = mixed.astype(before.dtype)
            self.images = now


@contextmanager
def ranks_in_one_process(monkeypatch, loaders):
    """Let the ranks' loaders, all in this process, meet as they would in a process group."""
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda group=None: len(loaders))
        total, count = zip(*(loader.tracker.sums() for loader in loaders), strict=True)
        patch.setattr(distributed, "sum_over_ranks", lambda *_, group: (sum(total), sum(count)))
        yield


#: What takes longer hangs; a machine that others share can stall for a minute.
SECONDS = 300


def run_ranks(work, world, folder, *args):
    """What ``work(rank, world, folder, *args)`` of every rank left in ``rankN.json``. No process is left behind."""
    return results_of(start_ranks(work, world, folder, *args), folder)


def rank_processes():
    """The context of processes that are forked from one that has imported torch, and done nothing with it."""
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "kcd_core.loading"])
    return context


def start_ranks(work, world, folder, *args):
    """`run_ranks` that doesn't wait: what it gives belongs to `results_of`. To import torch takes a rank seconds."""
    rank_processes()
    return torch.multiprocessing.start_processes(
        work, (world, folder, *args), nprocs=world, join=False, start_method="forkserver"
    )


def join_ranks(rank, world, folder, backend="gloo"):
    """Make the process group of `run_ranks`'s ranks, in one of them."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        backend,
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=SECONDS),
    )


def results_of(processes, folder):
    try:
        deadline = time.monotonic() + 2 * SECONDS
        while not processes.join(timeout=1):  # raises what a rank raised
            assert time.monotonic() < deadline, "the ranks hang"
    finally:
        stop(processes)
    world = len(processes.processes)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world)]


def stop(processes):
    for process in processes.processes:
        process.kill()
        process.join()


def leave_together(path, result, world):
    """By files: where a rank leaves first, torch 2.2 can wait forever, even in a barrier."""
    (path.parent / "unfinished").mkdir(exist_ok=True)
    unfinished = path.parent / "unfinished" / path.name
    unfinished.write_text(json.dumps(result))
    unfinished.rename(path)
    while len(list(path.parent.glob(f"{path.stem[:-1]}?.json"))) < world:
        time.sleep(0.02)
    os._exit(0)


def cut_off(figure):
    """The texts of a picture that do not lie within it, but for the numbers at ticks, which may not be shown."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    width, height = figure.bbox.size
    ticks = {label for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    cut = []
    for text in set(figure.findobj(Text)) - ticks:
        box = text.get_window_extent()
        beyond = min(box.x0, box.y0, width - box.x1, height - box.y1) < -1
        if text.get_visible() and text.get_text() and beyond:
            cut.append(text.get_text())
    return cut
