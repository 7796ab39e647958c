"""KCD's state beside a host's checkpoints, in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from test_engine import PROFILE
from torch.utils.data import DataLoader, TensorDataset

from kcd_adapters.hosts.engine import Engine
from kcd_adapters.profiles import Profile
from kcd_adapters.settings import Settings
from kcd_core.base.checkpoint import load_checkpoint, save_checkpoint

N = 40
CHECKPOINT = {"optimizer": {}, "epoch": 1}


class Run:
    """An engine, and a host that has one loader."""

    def __init__(self, batch_size: int = 8, **settings: Any) -> None:
        self.engine = Engine(Settings(ratio=0.5, stages=2, period=1, **settings), PROFILE, [])
        data = TensorDataset(torch.arange(N).float().unsqueeze(1), torch.arange(N) % 3)
        self.loader = DataLoader(data, batch_size=batch_size, shuffle=True)

    def epoch(self) -> list[int]:
        """What it drew."""
        hosted = self.engine.hosted(self.loader)
        assert hosted is not None
        drawn = []
        for x, y in self.engine.start(hosted):
            drawn += x.flatten().int().tolist()
            self.engine.observe((x % 7 * torch.eye(3)[0]).requires_grad_(), y)
        return sorted(drawn)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, list[int]]:
    """A checkpoint after the second epoch, and what the third drew."""
    path, run = tmp_path / "latest", Run()
    run.epoch()
    run.epoch()
    path.write_bytes(b"the host's")
    run.engine.host_saved(None, CHECKPOINT, path)
    return path, run.epoch()


def test_a_resumed_run_draws_what_the_other_would_have(saved: tuple[Path, list[int]]) -> None:
    path, third = saved
    run = Run()
    run.engine.host_loaded(CHECKPOINT, path)
    assert run.epoch() == third
    assert (run.engine.journal.epochs, len(third)) == (2, 20)


def test_a_run_by_chance_goes_on_by_the_seed_it_began_with(tmp_path: Path) -> None:
    path = tmp_path / "latest"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        run = Run(select="rs2")
        run.epoch()
        run.epoch()
        path.write_bytes(b"the host's")
        run.engine.host_saved(None, CHECKPOINT, path)
        torch.manual_seed(2)
        again, other = Run(select="rs2"), Run(select="rs2")
        again.engine.host_loaded(CHECKPOINT, path)
        left = [run.epoch() for _ in range(3)]
        assert [again.epoch() for _ in range(3)] == left
        assert [other.epoch() for _ in range(5)][2:] != left
    assert len(left[1]) == len(left[2]) == 20
    assert left[1] != left[2]


def test_seconds_add_up(saved: tuple[Path, list[int]]) -> None:
    path, _ = saved
    state = load_checkpoint(f"{path}.kcd")
    assert state["seconds"] > 0
    for spent in ({"seconds": 1e6}, {}):  # older states have none
        save_checkpoint(f"{path}.kcd", {**{k: v for k, v in state.items() if k != "seconds"}, **spent})
        run = Run()
        run.engine.host_loaded(CHECKPOINT, path)
        run.epoch()
        run.engine.close()
        assert 0 < run.engine.journal.seconds - spent.get("seconds", 0.0) < 1e5


def test_a_loader_that_was_seen_before_the_checkpoint_gets_its_state(saved: tuple[Path, list[int]]) -> None:
    path, third = saved
    run = Run()
    hosted = run.engine.hosted(run.loader)
    assert hosted is not None
    assert len(list(run.engine.start(hosted))) == 5  # a phase before, in which nothing is observed
    run.engine.host_loaded(CHECKPOINT, path)
    assert run.epoch() == third


def test_the_state_waits_for_the_loader_it_was_saved_of(saved: tuple[Path, list[int]]) -> None:
    path, third = saved
    run = Run()
    run.engine.host_loaded(CHECKPOINT, path)
    other = DataLoader(run.loader.dataset, batch_size=4, shuffle=True)
    hosted = run.engine.hosted(other)
    assert hosted is not None
    assert run.engine.train is None
    assert run.epoch() == third


def test_another_loader_than_the_saved_one_is_an_error(saved: tuple[Path, list[int]]) -> None:
    run = Run(batch_size=4)
    run.engine.host_loaded(CHECKPOINT, saved[0])
    with pytest.raises(
        RuntimeError, match=r"40 samples in batches of 8 \(.*\), and the student is being trained on .* of 4"
    ):
        run.epoch()


def test_other_samples_than_the_saved_ones_are_an_error(saved: tuple[Path, list[int]]) -> None:
    run = Run()
    images, labels = run.loader.dataset.tensors  # type: ignore[attr-defined]
    run.loader = DataLoader(type(run.loader.dataset)(images, labels.flip(0)), batch_size=8, shuffle=True)
    run.engine.host_loaded(CHECKPOINT, saved[0])
    with pytest.raises(
        RuntimeError, match=r"batches of 8 \(tensors.*\), and .* batches of 8 \(tensors.*resume with"
    ):
        run.epoch()


def test_a_resumed_pass_in_which_nothing_is_observed_is_an_error(saved: tuple[Path, list[int]]) -> None:
    run = Run()
    run.engine.host_loaded(CHECKPOINT, saved[0])
    hosted = run.engine.hosted(run.loader)
    assert hosted is not None
    with pytest.raises(RuntimeError, match="KCD resumed, but nothing was observed"):
        list(run.engine.start(hosted))


def test_a_state_that_is_missing_is_warned_of(
    saved: tuple[Path, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"{saved[0]}.kcd").unlink()
    engine = Run().engine
    engine.host_loaded({"model": {}}, saved[0])  # a teacher
    assert "WARNING" not in capsys.readouterr().out
    engine.host_loaded(CHECKPOINT, saved[0])
    assert "WARNING: there is no" in capsys.readouterr().out
    assert not engine.checkpoints.waiting


@pytest.mark.parametrize(
    ("moment", "steps", "profile", "said"),
    [
        ("before", 1, PROFILE, 1),
        ("before", 0, PROFILE, 0),  # an empty state, as of an optimizer that is reset
        ("later", 1, PROFILE, 0),
        (
            "before",
            1,
            replace(PROFILE, checkpoint=("files.save", "files.load")),
            0,
        ),  # which warns itself where there is no state of KCD's
    ],
    ids=["resumed", "reset", "later", "with_checkpoints"],
)
def test_where_kcd_does_not_resume_with_the_script_it_says_so_once(
    moment: str, steps: int, profile: Profile, said: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run()
    run.engine = Engine(run.engine.settings, profile, [])
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.Adam([weight])
    for _ in range(steps):
        optimizer.step()
    for now in ("before", "later"):
        if now == moment:
            run.engine.again.loaded(optimizer, optimizer.state_dict())
        run.epoch()
        assert now == "later" or run.engine.restart()
    out = capsys.readouterr().out
    assert out.count("it starts again, in its epoch 1, with all samples") == out.count("WARNING") == said


def test_a_state_of_version_2_is_of_a_run_that_asks_for_all(saved: tuple[Path, list[int]]) -> None:
    path, third = saved
    added = ("ask", "ask_multiple", "seconds", "select")  # since then
    state = {key: value for key, value in load_checkpoint(f"{path}.kcd").items() if key not in added}
    save_checkpoint(f"{path}.kcd", state | {"version": 2})
    with pytest.raises(ValueError, match=r"saved with ask = None, here it is 0\.25"):
        Run(ask=0.25).engine.host_loaded(CHECKPOINT, path)
    run = Run()
    run.engine.host_loaded(CHECKPOINT, path)
    assert run.epoch() == third


@pytest.mark.parametrize("version", [1, 4])
def test_other_versions_are_refused(saved: tuple[Path, list[int]], version: int) -> None:
    file = Path(f"{saved[0]}.kcd")
    save_checkpoint(file, load_checkpoint(file) | {"version": version})
    with pytest.raises(ValueError, match=f"of version {version}, and this kcd_core reads version 3"):
        Run().engine.host_loaded(CHECKPOINT, saved[0])


@pytest.mark.parametrize("damage", [b"", b"\x93KCDCKPT"])
def test_a_damaged_file_is_named_and_so_is_the_remedy(saved: tuple[Path, list[int]], damage: bytes) -> None:
    file = Path(f"{saved[0]}.kcd")
    file.write_bytes(damage)
    engine = Run().engine
    with pytest.raises(
        ValueError, match=r"can't resume with .*latest\.kcd.* delete .*latest\.kcd to begin anew"
    ):
        engine.host_loaded(CHECKPOINT, saved[0])
    assert not engine.checkpoints.waiting


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": -1}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"epochs": 0}, "it keeps 30 samples after 0 epochs; the schedule, 40"),
        ({"observed": 1000}, "contradict each other"),
        ({"method": "crd"}, "method = 'crd', here it is 'kd'"),
        ({"ask": 0.25}, r"ask = 0\.25, here it is None"),
        ({"select": "random"}, "select = 'random', here it is None"),
        ({"repository": "sskd"}, "repository = 'sskd'"),
        ({"seconds": -1.0}, "its seconds are none"),
        ({"seconds": "long"}, "can't resume"),
        ({"loader": 3}, "can't resume"),
        ({"tracker": None}, "not a tracker state"),
    ],
)
def test_a_state_that_contradicts_itself_or_the_run_is_refused(
    saved: tuple[Path, list[int]], change: dict[str, Any], message: str
) -> None:
    file = Path(f"{saved[0]}.kcd")
    save_checkpoint(file, load_checkpoint(file) | change)
    with pytest.raises(ValueError, match=message):
        Run().engine.host_loaded(CHECKPOINT, saved[0])


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"period": 3}, "To train for more epochs, keep the schedule: --period 3, and not auto. Resume from"),
        ({"period": 3, "ratio": 0.4}, None),
        ({"period": torch.ones(2)}, None),
    ],
    ids=["period", "ratio", "damaged"],
)
def test_a_run_for_more_epochs_is_told_to_keep_its_period(
    saved: tuple[Path, list[int]], other: dict[str, Any], told: str | None
) -> None:
    file = Path(f"{saved[0]}.kcd")
    state = load_checkpoint(file)
    save_checkpoint(file, state | {"schedule": {**state["schedule"], **other}})
    with pytest.raises(ValueError, match="saved with schedule = ") as error:
        Run().engine.host_loaded(CHECKPOINT, saved[0])
    assert ("more epochs" in str(error.value)) == (told is not None)
    assert told is None or told in str(error.value)


def test_another_checkpoint_or_other_settings_are_refused(saved: tuple[Path, list[int]]) -> None:
    path = saved[0]
    with pytest.raises(ValueError, match=r"alpha = 0\.03, here it is 0.5"):
        Run(alpha=0.5).engine.host_loaded(CHECKPOINT, path)
    path.write_bytes(b"the next one")
    with pytest.raises(ValueError, match=r"belongs to another checkpoint than .*latest is now"):
        Run().engine.host_loaded(CHECKPOINT, path)


def test_several_processes_save_no_state_and_take_up_none(
    saved: tuple[Path, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    run = Run()
    run.epoch()
    other = tmp_path / "other"
    other.write_bytes(b"the host's")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for _ in range(2):
        run.engine.host_saved(None, CHECKPOINT, other)
    assert not Path(f"{other}.kcd").exists()
    told = "resuming is for one process, and there are 2"
    assert capsys.readouterr().out.count(f"{told}, so no state of KCD's is saved") == 1
    with pytest.raises(ValueError, match=told):
        Run().engine.host_loaded(CHECKPOINT, saved[0])
