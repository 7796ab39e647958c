"""Several observed functions; and what is said, and done, where none of them sees the student."""

from __future__ import annotations

import json
import sys
from collections import deque
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from test_run import ONCE, Host, host, on  # noqa: F401
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from kcd_adapters.hosts import import_hooks
from kcd_adapters.hosts.engine import Engine
from kcd_adapters.profiles import Profile, find, profiles, whole
from kcd_adapters.settings import Settings

PROFILE = Profile("mini", "Mini", "train.py", (), "torch.nn.functional.cross_entropy", lambda arguments: "kd")


class Script:
    """A script that trains, as the patched DataLoader and optimizers tell the engine."""

    def __init__(self, *, before: int = 0, **settings: Any) -> None:
        self.engine = Engine(Settings(**settings), replace(PROFILE, before=lambda arguments: before), [])
        self.model = torch.nn.Linear(1, 3)
        self.data = TensorDataset(torch.arange(40.0).unsqueeze(1), torch.arange(40) % 3)
        self.loader: Any = DataLoader(self.data, batch_size=8, shuffle=True)

    def batches(self, loader: Any = None) -> Any:
        loader = self.loader if loader is None else loader
        hosted = self.engine.hosted(loader)
        return DataLoader.__iter__(loader) if hosted is None else self.engine.start(hosted)

    def epoch(self, *, steps: bool = True, observed: bool = False, batches: int = 99) -> None:
        for _, (x, y) in zip(range(batches), self.batches(), strict=False):
            if observed:
                self.engine.observe(self.model(x), y)
            if steps:
                self.engine.unobserved.stepped()


def test_where_no_loader_was_followed_nothing_is_said_of_models() -> None:
    engine = Engine(Settings(profile="auto"), find(Path("train.py"), "auto"), [])
    assert engine.unobserved.why() == "no loader could be followed: no DataLoader was iterated"
    data = TensorDataset(torch.zeros(4))
    engine.hosted(DataLoader(data))
    assert engine.unobserved.why() == "no loader could be followed: the loader does not shuffle (1 x)"
    engine.hosted(DataLoader(data, shuffle=True))
    assert engine.unobserved.why() == "no model returned [B, C] with a gradient before backward()"


def test_training_that_is_not_observed_stops_with_the_second_epochs_first_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = Script()
    script.epoch()
    assert "nothing was observed in a whole pass over TensorDataset, 40 samples" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        script.epoch(batches=1)
    assert end.value.code == 3
    with pytest.raises(SystemExit):  # of a script that goes on regardless
        script.epoch(batches=1)
    assert not script.engine.close()
    said = capsys.readouterr().out
    assert (
        said.count("the run stops, since it is plain training: 1 epoch of training over TensorDataset") == 1
    )
    assert "cross_entropy was never called" in said
    assert "--if-unobserved warn" in said
    assert "this run was without KCD" not in said  # it was told already


def test_on_request_it_is_warned_of_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(if_unobserved="warn")
    for _ in range(3):
        script.epoch()
    said = capsys.readouterr().out
    assert said.count("WARNING: 1 epoch of training over TensorDataset, 40 samples, and nothing was obs") == 1
    script.epoch(observed=True)
    assert script.engine.close()


@pytest.mark.parametrize("steps_first", [True, False])
def test_what_is_no_epoch_of_training_stops_nothing(steps_first: bool) -> None:
    """Statistics of the data, validation on a loader that shuffles, a search for a learning rate."""
    script = Script()
    if steps_first:
        script.engine.unobserved.stepped()
    for _ in range(3):
        script.epoch(steps=False)
        script.epoch(batches=2)
    script.epoch(observed=True)
    script.engine.unobserved.stepped()
    script.epoch()  # later, nothing is: it is said when it is over
    script.epoch()
    assert script.engine.journal.epochs == 1


def test_a_profile_says_how_many_epochs_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(before=3)
    for _ in range(3):
        script.epoch()
    script.epoch(observed=True)
    script.epoch(observed=True)
    script = Script(before=3)
    for _ in range(4):
        script.epoch()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        script.epoch()
    said = capsys.readouterr().out
    assert "4 epochs of training over TensorDataset, 40 samples (the profile expects 3 before the st" in said


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return zip(torch.arange(40.0).unsqueeze(1), torch.arange(40) % 3, strict=True)


def weighted(data: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=8, sampler=WeightedRandomSampler([1.0] * 40, 40))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (weighted, "loader has a sampler of its own, WeightedRandomSampler"),
        (lambda data: DataLoader(Stream(), batch_size=8), "an IterableDataset has no indices"),
    ],
    ids=["weighted", "stream"],
)
def test_training_on_a_loader_that_can_not_be_followed_stops_with_its_first_step(
    make: Any, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script()
    script.loader = make(script.data)
    script.epoch(steps=False)
    list(script.batches(DataLoader(script.data, batch_size=8)))  # a validation
    script.engine.unobserved.stepped()  # of what is no epoch
    with pytest.raises(SystemExit):
        script.epoch(batches=1)
    said = capsys.readouterr().out
    assert f" began, and no loader could be followed: {why}" in said
    assert script.engine.unobserved.steps == 2


def test_a_loader_that_can_not_be_followed_beside_the_students_stops_nothing() -> None:
    script = Script()
    for _ in range(2):  # as of unlabelled samples, whose loader begins first
        for _, (x, y) in zip(script.batches(weighted(script.data)), script.batches(), strict=True):
            script.engine.unobserved.stepped()
            script.engine.observe(script.model(x), y)
    assert script.engine.close()


def test_where_a_profile_knows_epochs_before_the_students_it_stops_after_those() -> None:
    script = Script(before=1)
    students, script.loader = script.loader, weighted(script.data)
    script.epoch()
    script.loader = students
    script.epoch(observed=True)
    assert script.engine.close()


def test_an_error_of_kcds_own_is_none_of_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise TypeError("broken() missing 1 required argument")

    monkeypatch.setattr("kcd_adapters.hosts.loader.mixing_cache_of", broken)
    with pytest.raises(TypeError, match="missing 1 required argument"):
        Script().epoch()


def test_validation_in_order_between_epochs_is_none_of_training() -> None:
    script = Script(before=1)
    ordered = DataLoader(script.data, batch_size=8)
    for _ in range(2):  # twice in the one epoch that comes first
        list(script.batches(ordered))
        script.epoch(batches=2)
    list(script.batches(ordered))
    script.epoch()
    script.engine.unobserved.stepped()


def test_steps_are_noticed_of_every_optimizer_until_something_is_observed() -> None:
    script = Script()
    optimizer = torch.optim.SGD(script.model.parameters(), lr=0.1)
    script.engine.unobserved.watch()
    optimizer.step()
    torch.optim.Adam(script.model.parameters()).step()
    assert script.engine.unobserved.steps == 2
    script.epoch(observed=True, steps=False)
    optimizer.step()
    assert script.engine.unobserved.steps == 2


@on("repdistiller")
def test_a_run_that_would_be_plain_ends_after_its_first_epoch(host: Host) -> None:  # noqa: F811
    script = ("train_student.py", "--accuracy", "never")
    output, items = host.kcd(*ONCE, *script, status=3)
    assert {item["epoch"] for item in items} == {1}
    assert output.count("the run stops, since it is plain training: 1 epoch of training over CIFAR100In") == 1
    assert "nothing was observed: helper.loops.accuracy was never called" in output
    assert "Traceback" not in output


@on("repdistiller")
def test_a_patched_script_ends_after_its_first_epoch_as_well(host: Host) -> None:  # noqa: F811
    host.run("-m", "kcd_adapters", "patch", *ONCE, ".")
    output, items = host.run("train_student.py", "--accuracy", "never", status=3)
    assert "the run stops" in output
    assert "without KCD" not in output
    assert {item["epoch"] for item in items} == {1}
    script = host.folder / "train_student.py"
    code = script.read_text()
    assert "if_unobserved='stop'," in code
    script.write_text(code.replace("if_unobserved='stop'", "if_unobserved='warn'"))
    output, items = host.run("train_student.py", "--accuracy", "never", "--epochs", "2")
    assert output.count("WARNING: 1 epoch of training over CIFAR100Instance") == 1
    assert {item["epoch"] for item in items if "epoch" in item} == {1, 2}


@on("sskd")
def test_a_process_that_a_script_spawned_and_that_was_stopped_gives_the_status(host: Host) -> None:  # noqa: F811
    """As torch.multiprocessing.spawn() tells it."""
    code = "class Ended(Exception):\n    exit_code = {}\nraise Ended('process 1')\n"
    for status, expected in ((3, 3), (9, 1)):
        (host.folder / "student.py").write_text(code.format(status))
        output, _ = host.kcd("--profile", "sskd", "student.py", status=expected)
        assert "Ended: process 1" in output


@on("repdistiller")
def test_more_epochs_without_the_student_than_its_profile_knows_stop_the_run(host: Host) -> None:  # noqa: F811
    script = ("train_student.py", "--distill", "abound", "--init_epochs=3", "--accuracy", "never")
    output, _ = host.kcd(*ONCE, *script, status=3)
    assert "4 epochs of training over CIFAR100Instance, 98 samples (the profile expects 3 before" in output


# -- what profiles know ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "before", "epochs"),
    [
        ("repdistiller", "", 0, 240),
        ("repdistiller", "--distill abound", 30, 240),
        ("repdistiller", "--distill=fsp --init_epochs 5 --epochs=7", 5, 7),
        ("repdistiller", "--distill factor --epochs x", 30, 240),
        ("simkd", "--distill simkd --epochs 9", 0, 9),
        ("sskd", "", 60, 240),
        ("sskd", "--t-epoch 2 --epoch 3", 2, 3),
        ("reviewkd", "", 0, None),
        ("reviewkd", "--epochs 3", 0, 3),
        ("mdistiller", "", 0, None),
        ("mdistiller", "--cfg kd.yaml", 0, 12),
        ("mdistiller", "--cfg kd.yaml SOLVER.LR 0.1 SOLVER.EPOCHS 4", 0, 4),
        ("mdistiller", "--cfg broken.yaml", 0, None),
        ("timm", "", 0, 300),
        ("timm", "--config timm.yaml", 0, 25),
        ("timm", "--config timm.yaml --epochs 6", 0, 11),
    ],
)
def test_how_long_a_script_trains(
    name: str,
    arguments: str,
    before: int,
    epochs: int | None,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    # PyYAML is the scripts' requirement, and none of kcd's: JSON is YAML, too.
    monkeypatch.setitem(sys.modules, "yaml", SimpleNamespace(safe_load=json.loads, YAMLError=ValueError))
    (tmp_path / "kd.yaml").write_text('{"SOLVER": {"EPOCHS": 12}}')
    (tmp_path / "broken.yaml").write_text('{"SOLVER": [1')
    (tmp_path / "timm.yaml").write_text('{"epochs": 20, "cooldown_epochs": 5}')
    profile = find(tmp_path, name)
    assert (profile.before(arguments.split()), profile.epochs(arguments.split())) == (before, epochs)


def test_whole_numbers_of_a_command_line() -> None:
    assert whole(["--epochs", "3", "--epochs=4"], "--epochs") == 4
    assert whole(["--epochs", "many"], "--epochs") is None
    assert whole([], "--epochs", default=5) == 5


# -- several functions -------------------------------------------------------------------------------------


def test_the_first_of_several_functions_counts_and_a_batch_is_recorded_once() -> None:
    script = Script()
    for x, y in script.batches():
        script.engine.observe(script.model(x), y)
        script.engine.observe(2 * script.model(x), y)
    assert script.engine.train is not None
    assert script.engine.train.observed == 40
    assert script.engine.train.tracker.count.tolist() == [1] * 40


def test_at_the_end_of_a_pass_a_second_call_is_not_taken_for_a_batch_that_was_fetched_ahead() -> None:
    script = Script()
    batches = script.batches()
    ahead = deque(islice(batches, 3))
    while ahead:
        x, y = ahead.popleft()
        for _ in range(2):
            script.engine.observe(script.model(x), y)
        ahead.extend(islice(batches, 1))
    assert script.engine.train is not None
    assert script.engine.train.tracker.count.tolist() == [1] * 40


TWO = """
import torch
from torch.utils.data import DataLoader, TensorDataset
import losses

if __name__ == "__main__":
    data = TensorDataset(torch.arange(8.0)[:, None], torch.arange(8) % 2)
    loader, kept = DataLoader(data, batch_size=4, shuffle=True), []
    model = torch.nn.Linear(1, 2)
    for epoch in range(3):
        kept.append(0)
        for x, y in loader:
            kept[-1] += len(y)
            if epoch == 1:
                losses.Criterion()(y, model(x))
            else:
                losses.kd(model(x), y)
    print("drawn", kept)
"""
PROFILE_OF_TWO = """
from kcd_adapters.profiles import Profile

PROFILE = Profile(
    name="two", title="Two", script="go.py", marks=(), method=lambda arguments: "kd",
    observe=("losses.kd", "losses:Criterion.__call__", "losses.gone", "elsewhere.kd"),
    returned=("losses:Criterion.__call__",),
    prediction={"losses:Criterion.__call__": lambda result, criterion, labels, logits: (result, labels)},
)
"""


@on("sskd")
def test_several_functions_and_methods_are_observed(host: Host) -> None:  # noqa: F811
    for name, code in {
        "two.py": PROFILE_OF_TWO,
        "losses.py": "def kd(logits, labels): ...\nclass Criterion:\n    def __call__(self, y, p): return 2 * p\n",
        "go.py": TWO,
    }.items():
        (host.folder / name).write_text(code)
    output, _ = host.kcd(*ONCE, "--profile", "two.py", "go.py")
    assert "observed at losses.kd or losses:Criterion.__call__ or losses.gone or elsewhere.kd" in output
    assert "losses has no function gone, which the profile observes beside others" in output
    assert "drawn [8, 6, 4]" in output
    assert "18 of them observed" in output


def test_a_function_that_no_module_has_is_an_error_where_it_is_the_only_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "kcd_two_empty", ModuleType("kcd_two_empty"))
    lines: list[str] = []
    import_hooks.after_call("kcd_two_empty.g", print, lines.append)
    import_hooks.before_call("kcd_two_empty:C.g", print, lines.append)
    assert [line.partition(",")[0] for line in lines] == [
        "kcd_two_empty has no function g",
        "kcd_two_empty has no function C.g",
    ]
    with pytest.raises(RuntimeError, match="this checkout is not as its profile expects"):
        import_hooks.before_call("kcd_two_empty.g", print)


@pytest.mark.parametrize("field", [{"returned": ("a.g",)}, {"prediction": {"a.g": print}}])
def test_what_a_profile_says_of_a_function_that_it_does_not_observe_is_an_error(field: Any) -> None:
    with pytest.raises(ValueError, match=r"names 'a.g', which is not observed; observed are a.f, b.f"):
        replace(PROFILE, observe=("a.f", "b.f"), **field)
    assert [profile.observed_at for profile in profiles()]
