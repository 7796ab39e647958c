"""The torchdistill plugin, in a miniature torchdistill: same module names, registries and call order."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kcd_core as kcd

torch = pytest.importorskip("torch")
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler  # noqa: E402

N, CLASSES = 60, 3

REGISTRY = """
{dicts}

def _register(registry, key, value=None):
    def register(f):
        registry[key or f.__name__] = f
        return f
    return register(value) if value is not None else register
"""

MINIATURE = {
    "torchdistill/__init__.py": "",
    "torchdistill/datasets/__init__.py": "",
    "torchdistill/datasets/registry.py": REGISTRY.format(dicts="WRAPPERS, BATCH_SAMPLERS = {}, {}")
    + """
def register_dataset_wrapper(arg=None, key=None):
    return _register(WRAPPERS, key, arg)

def register_batch_sampler(arg=None, key=None):
    return _register(BATCH_SAMPLERS, key, arg)

def get_dataset_wrapper(key):
    return WRAPPERS[key]
""",
    "torchdistill/datasets/wrapper.py": """
from .registry import register_dataset_wrapper

class BaseDatasetWrapper:
    def __init__(self, org_dataset):
        self.org_dataset = org_dataset

    def __getitem__(self, index):
        sample, target = self.org_dataset.__getitem__(index)
        return sample, target, dict()

    def __len__(self):
        return len(self.org_dataset)

@register_dataset_wrapper
class Contrast(BaseDatasetWrapper):
    def __init__(self, org_dataset, classes):
        super().__init__(org_dataset)
        t = org_dataset.targets
        self.cls_negatives = [[i for i in range(len(t)) if t[i] != c] for c in range(classes)]

    def __getitem__(self, index):
        sample, target, supp_dict = super().__getitem__(index)
        supp_dict["negatives"] = len(self.cls_negatives[target])
        return sample, target, supp_dict

@register_dataset_wrapper
class Cached(BaseDatasetWrapper):
    cache_dir_path = "x"
""",
    "torchdistill/core/__init__.py": "",
    "torchdistill/core/interfaces/__init__.py": "",
    "torchdistill/core/interfaces/registry.py": REGISTRY.format(
        dicts="FORWARD_PROC_FUNC_DICT, PRE_EPOCH_PROC_FUNC_DICT, POST_EPOCH_PROC_FUNC_DICT = {}, {}, {}"
    )
    + """
def register_forward_proc_func(arg=None, key=None):
    return _register(FORWARD_PROC_FUNC_DICT, key, arg)

def register_pre_epoch_proc_func(arg=None, key=None):
    return _register(PRE_EPOCH_PROC_FUNC_DICT, key, arg)

def register_post_epoch_proc_func(arg=None, key=None):
    return _register(POST_EPOCH_PROC_FUNC_DICT, key, arg)
""",
    "torchdistill/core/interfaces/forward_proc.py": """
from .registry import register_forward_proc_func

@register_forward_proc_func
def forward_batch_only(model, sample_batch, targets=None, supp_dict=None, **kwargs):
    return model(sample_batch)

@register_forward_proc_func
def forward_batch4sskd(model, sample_batch, targets=None, supp_dict=None, **kwargs):
    return model(sample_batch.repeat_interleave(4, 0) * torch.tensor([1, 2, 3, 4.0]).repeat(len(sample_batch))[:, None])

import torch
""",
    "torchdistill/core/interfaces/pre_epoch_proc.py": """
from .registry import register_pre_epoch_proc_func

@register_pre_epoch_proc_func
def default(self, epoch=None, **kwargs):
    self.begun = epoch
""",
    "torchdistill/core/interfaces/post_epoch_proc.py": """
from .registry import register_post_epoch_proc_func

@register_post_epoch_proc_func
def default(self, metrics=None, **kwargs):
    self.ended += 1
""",
}


class Points(torch.utils.data.Dataset):  # type: ignore[misc,name-defined]
    """Raw images in .data, as torchvision keeps them."""

    def __init__(self) -> None:
        self.data = np.random.default_rng(0).integers(0, 256, (N, 2, 2, 3), np.uint8)
        self.targets = [i % CLASSES for i in range(N)]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return torch.from_numpy(np.asarray(self.data[index])).float().flatten() / 256, self.targets[index]

    def __len__(self) -> int:
        return N


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, text in MINIATURE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    ours = [n for n in sys.modules if n.partition(".")[0] == "torchdistill"] + ["kcd_adapters.torchdistill"]
    for name in ours:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield import_module("kcd_adapters.torchdistill")
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchdistill"] + [
        "kcd_adapters.torchdistill"
    ]:
        sys.modules.pop(name, None)


def build(
    plugin: Any, sampler: Any = RandomSampler, workers: int = 0, wrapper: Any = None, **settings: Any
) -> SimpleNamespace:
    """What torchdistill builds from the configuration, in its order."""
    registry, processes = plugin._datasets, plugin._processes
    dataset = registry.WRAPPERS["KCDDatasetWrapper"](Points(), wrapper=wrapper)
    options = {"ratio": 0.5, "stages": 2, "period": 2, "mixing": "none", **settings}
    batches = registry.BATCH_SAMPLERS["KCDBatchSampler"](
        sampler(dataset), batch_size=16, drop_last=False, **options
    )
    return SimpleNamespace(
        train_data_loader=DataLoader(dataset, batch_sampler=batches, num_workers=workers),
        model=torch.nn.Linear(12, CLASSES),
        forward=processes.FORWARD_PROC_FUNC_DICT["kcd_forward_batch_only"],
        pre_epoch=processes.PRE_EPOCH_PROC_FUNC_DICT["kcd_default"],
        post_epoch=processes.POST_EPOCH_PROC_FUNC_DICT["kcd_default"],
        batches=batches,
        dataset=dataset,
        ended=0,
    )


def train(box: SimpleNamespace, epochs: int, start: int = 0) -> list[list[tuple[int, float, Any]]]:
    """For each epoch: index, entropy and image of everything drawn."""
    log = []
    for epoch in range(start, start + epochs):
        drawn = []
        box.pre_epoch(box, epoch=epoch)
        assert len(box.train_data_loader) == -(-box.batches.order.num_kept // 16)
        for x, y, supplement in box.train_data_loader:
            logits = box.forward(box.model, x, y, supplement)
            p = torch.log_softmax(logits.detach().double(), 1)
            entropies = -(p.exp() * p).sum(1)
            drawn += list(zip(supplement["kcd_index"].tolist(), entropies.tolist(), x, strict=True))
        box.post_epoch(box)
        log.append(drawn)
    return log


@pytest.mark.parametrize("workers", [0, 2])
def test_draws_what_the_values_imply(plugin: Any, workers: int, tmp_path: Path) -> None:
    box = build(plugin, workers=workers, history=str(tmp_path / "history.json"), log=str(tmp_path / "l"))
    total, count, kept = np.zeros(N), np.zeros(N, int), np.arange(N)
    schedule = kcd.CondensationSchedule(0.5, 2, 2)
    log = train(box, 6)
    for epoch, drawn in enumerate(log, 1):
        assert sorted(index for index, *_ in drawn) == kept.tolist()
        for index, entropy, _ in drawn:
            total[index] += entropy
            count[index] += 1
        if schedule.due(epoch):
            target = schedule.target(N, len(kept))
            kept = kcd.condense(total / count, count, previous=len(kept), target=target).kept
    assert [len(drawn) for drawn in log] == [60, 60, 45, 45, 30, 30]
    assert box.ended == 6
    content = json.loads((tmp_path / "history.json").read_text())
    assert [r["kept"] for r in content["history"]["records"]] == [45, 30, 30]
    assert (content["run"]["repository"], content["settings"]["ratio"]) == ("torchdistill", 0.5)
    lines = [json.loads(line) for line in (tmp_path / "l").read_text().splitlines()]
    assert [(line["repository"], line["epoch"], line["kept"]) for line in lines] == [
        ("torchdistill", epoch, kept) for epoch, kept in ((2, 45), (4, 30), (6, 30))
    ]


def test_sets_by_chance_go_by_the_seed_and_no_other_run_goes_on_with_them(
    plugin: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kcd.pt"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        log = train(build(plugin, select="random", state=str(path)), 3)
    chosen = np.random.default_rng([3, 1]).choice(N, 45, replace=False)
    assert sorted(index for index, *_ in log[2]) == sorted(chosen)
    line = "kcd: stage 1 after epoch 2: 45 of 60 kept, 15 dropped, 0 mixed\n"
    assert capsys.readouterr().out == line
    for select in (None, "rs2"):
        box = build(plugin, select=select, state=str(path))
        with pytest.raises(ValueError, match="saved with select = 'random'"):
            box.pre_epoch(box, epoch=3)
    train(build(plugin, state=str(path)), 2)
    state = kcd.load_checkpoint(path)
    del state["select"]  # as older ones have none
    kcd.save_checkpoint(path, state)
    box = build(plugin, state=str(path))
    box.pre_epoch(box, epoch=2)
    assert (box.batches.epoch, box.batches.order.num_kept) == (2, 45)


@pytest.mark.parametrize("cache", ["0", "1 MB"])
def test_images_are_mixed_by_the_recipe(plugin: Any, cache: str) -> None:
    box = build(plugin, mixing="cumulative", mixing_cache=cache)
    before = Points().data
    train(box, 2)
    mixed = 0
    for index, _, image in train(box, 1, 2)[0]:
        steps = box.batches.order.steps(index)
        mixed += bool(steps)
        expected = before[index]
        for _, source, weight in steps:
            a, b = expected.astype(np.float32), before[source].astype(np.float32)
            expected = (a * np.float32(weight) + b * np.float32(1 - weight)).astype(np.uint8)
        assert (image * 256).tolist() == expected.astype(np.float32).flatten().tolist()
    assert mixed == 15
    made = box.batches._batches.cache
    assert (
        0 if made is None else len(made.of(box.batches.order.recipes, box.batches.order.kept).targets)
    ) == (0 if cache == "0" else 15)
    assert (box.dataset.org_dataset.data == before).all()


def test_all_of_the_data_in_the_sampler_s_own_order_at_ratio_one(plugin: Any) -> None:
    torch.manual_seed(5)
    expected = [list(RandomSampler(range(N))) for _ in range(3)]
    box = build(plugin, ratio=1.0)
    torch.manual_seed(5)
    for order in expected:
        assert [key for batch in box.batches for key in batch] == order


def test_distributed_sampler_s_epochs_and_ranks(plugin: Any) -> None:
    drawn: list[int] = []
    for rank in range(2):
        box = build(plugin, lambda d, rank=rank: DistributedSampler(d, num_replicas=2, rank=rank))
        box.batches.order.install(kcd.CondensedSet(np.arange(0, 40, 2), N))
        box.train_data_loader.batch_sampler.sampler.set_epoch(3)
        drawn += [key for batch in box.batches for key in batch]
    assert sorted(drawn) == list(range(0, 40, 2))


def test_wrapper_inside_keeps_its_fields_and_negatives_follow(plugin: Any) -> None:
    box = build(plugin, wrapper={"key": "Contrast", "kwargs": {"classes": CLASSES}}, mixing="cumulative")
    (_, _, supplement) = next(iter(box.train_data_loader))
    assert set(supplement["negatives"].tolist()) == {40}
    train(box, 4)
    kept = box.batches.order.kept
    for x, y, supplement in box.train_data_loader:
        box.forward(box.model, x, y, supplement)
        of_others = [int((kept % CLASSES != target).sum()) for target in y.tolist()]
        assert supplement["negatives"].tolist() == of_others


def test_negatives_of_data_without_any_are_warned_of(plugin: Any, capsys: pytest.CaptureFixture[str]) -> None:
    contrast = {"key": "Contrast", "kwargs": {"classes": CLASSES}}
    for settings, times in (
        ({}, 0),
        ({"negatives": "full"}, 1),
        ({"negatives": "full", "wrapper": contrast}, 0),
    ):
        build(plugin, **settings)
        assert (
            capsys.readouterr().out.count("WARNING: negatives full changes nothing: BaseDatasetWrapper")
            == times
        )


def test_rotations_count_once(plugin: Any) -> None:
    box = build(plugin)
    box.forward = plugin._processes.FORWARD_PROC_FUNC_DICT["kcd_forward_batch4sskd"]
    x, y, supplement = next(iter(box.train_data_loader))
    box.forward(box.model, x, y, supplement)
    p = torch.log_softmax(box.model(x).detach().double(), 1)
    expected = -(p.exp() * p).sum(1).numpy()
    indices = supplement["kcd_index"].numpy()
    assert np.allclose(box.batches.tracker.value[indices], expected, atol=1e-5)
    assert box.batches.tracker.count.sum() == 16


def test_validation_is_not_recorded(plugin: Any) -> None:
    box = build(plugin)
    x, y, supplement = next(iter(box.train_data_loader))
    with torch.no_grad():
        box.forward(box.model, x, y, supplement)
    box.forward(box.model, x, y, {})  # a loader of another data set
    assert box.batches.tracker.count.sum() == 0


def test_resumed_run_goes_on_with_its_set(plugin: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "kcd.pt")
    settings = {"mixing": "cumulative", "wrapper": {"key": "Contrast", "kwargs": {"classes": CLASSES}}}
    box = build(plugin, state=path, **settings)
    whole = train(box, 3)
    whole += train(box, 3, 3)
    first = build(plugin, state=path, **settings)
    train(first, 3)
    again = build(plugin, state=path, **settings)
    again.model.load_state_dict(first.model.state_dict())
    rest = train(again, 3, 3)
    assert [len(drawn) for drawn in rest] == [len(drawn) for drawn in whole[3:]]
    assert sorted(i for i, *_ in rest[0]) == first.batches.order.kept.tolist()
    assert again.batches.tracker.count.sum() == 60 + 60 + 45 + 45 + 30 + 30
    assert len(again.batches.history) == 3
    assert any(again.batches.order.steps(i) for i in range(N))


def test_resuming_without_its_state_is_refused(plugin: Any, tmp_path: Path) -> None:
    box = build(plugin)
    with pytest.raises(ValueError, match="can't start at epoch 4 without its state"):
        box.pre_epoch(box, epoch=4)
    path = str(tmp_path / "kcd.pt")
    train(build(plugin, state=path), 2)
    box = build(plugin, state=path)
    with pytest.raises(RuntimeError, match="pre_epoch_process"):
        iter(box.batches)
    with pytest.raises(ValueError, match="epoch = 2"):
        box.pre_epoch(box, epoch=3)
    box = build(plugin, state=path, alpha=0.5)
    with pytest.raises(ValueError, match="alpha"):
        box.pre_epoch(box, epoch=2)
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:-1])
    box = build(plugin, state=path)
    with pytest.raises(ValueError, match=r"can't start at epoch 2 with .*kcd\.pt"):
        box.pre_epoch(box, epoch=2)
    assert (box.batches.epoch, box.batches.order.num_kept) == (0, N)
    Path(path).write_bytes(content)
    box = build(plugin, state=path)
    box.stage_number = 2  # a later training stage: not resumed, though the epoch is a later one
    box.pre_epoch(box, epoch=2)
    assert box.batches.epoch == 0


def test_what_is_forgotten_in_the_configuration_is_named(plugin: Any) -> None:
    with pytest.raises(TypeError, match="SequentialSampler"):
        build(plugin, SequentialSampler)
    with pytest.raises(TypeError, match="dataset_wrapper"):
        plugin.KCDBatchSampler(RandomSampler(Points()), 16)
    with pytest.raises(ValueError, match="ratoi"):
        build(plugin, ratoi=0.5)
    for name, value in {"profile": "auto", "student": "2", "if_unobserved": "warn", "no_shims": []}.items():
        with pytest.raises(ValueError, match=f"takes no {name}, which only kcd run uses"):
            build(plugin, **{name: value})
    with pytest.raises(ValueError, match="cached teacher outputs"):
        build(plugin, mixing="fresh", wrapper={"key": "Cached"})
    for name in ("state", "history", "log"):
        with pytest.raises(ValueError, match=f"KCDBatchSampler's {name} .*gone/x: No such file"):
            build(plugin, **{name: "gone/x"})
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        plugin.KCDBatchSampler(RandomSampler(Points()), 0)
    build(plugin, wrapper={"key": "Cached"})
    box = build(plugin)
    with pytest.raises(RuntimeError, match="kcd_forward_batch_only"):
        box.post_epoch(box)
    for x, y, supplement in box.train_data_loader:
        box.forward(box.model, x, y, supplement)
    with pytest.raises(RuntimeError, match="post_epoch_process"):
        iter(box.train_data_loader).__next__()
    with pytest.raises(TypeError, match="needs the student's logits"):
        box.forward(lambda x: (x, x), x, y, supplement)


def test_an_epoch_in_which_nothing_is_observed_is_warned_of(
    plugin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    box = build(plugin)
    for _ in range(3):
        for _ in box.train_data_loader:
            pass
    assert capsys.readouterr().out.count("WARNING: nothing was observed in a whole epoch") == 1
    for workers in (0, 1):  # with workers, a DataLoader begins its batch sampler twice
        train(build(plugin, workers=workers), 3)
        assert "WARNING" not in capsys.readouterr().out


def test_what_can_not_be_mixed_fails_at_the_first_batch(plugin: Any) -> None:
    class Words(torch.utils.data.Dataset):  # type: ignore[misc,name-defined]
        def __getitem__(self, index: int) -> tuple[str, int]:
            return f"word {index}", index % CLASSES

        def __len__(self) -> int:
            return N

    dataset = plugin.KCDDatasetWrapper(Words())
    batches = plugin.KCDBatchSampler(RandomSampler(dataset), 16, ratio=0.5)
    with pytest.raises(TypeError, match=r"In torchdistill: mixing: 'none'"):
        next(iter(DataLoader(dataset, batch_sampler=batches)))
    batches = plugin.KCDBatchSampler(RandomSampler(dataset), 16, ratio=0.5, mixing="none")
    assert len(next(iter(DataLoader(dataset, batch_sampler=batches)))[0]) == 16


def test_persistent_workers_with_negatives_of_what_is_kept_are_refused_after_the_first_epoch(
    plugin: Any,
) -> None:
    contrast = {"key": "Contrast", "kwargs": {"classes": CLASSES}}
    for wrapper, negatives, fits in (
        (contrast, "kept", False),
        (contrast, "full", True),
        (None, "kept", True),
    ):
        box = build(plugin, wrapper=wrapper, negatives=negatives)
        box.train_data_loader = DataLoader(
            box.dataset, batch_sampler=box.batches, num_workers=1, persistent_workers=True
        )
        if fits:
            train(box, 1)
        else:
            with pytest.raises(ValueError, match="persistent workers don't see"):
                train(box, 1)
