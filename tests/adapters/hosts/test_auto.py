"""``kcd run --auto`` on training loops as people write them (``miniatures/auto/loops.py``).

Each loop notes its own prediction for every batch. What should have been drawn after it is worked out from that with the
reference of the method, index by index.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference

import kcd_core as kcd
from kcd_adapters.settings import Settings

torch: Any = pytest.importorskip("torch")
DataLoader = torch.utils.data.DataLoader

LOOPS = Path(__file__).parents[1] / "miniatures" / "auto" / "loops.py"
ONCE = ("--ratio", "0.5", "--stages", "2", "--period", "1", "--mixing", "none")
SIZES = [90, 68, 46, 45]
N = 90
Notes = list[tuple[str, int, list[int], Any]]

#: Imports torch once, and runs every command in a fork.
SERVER = """
import os
import sys
import traceback
import torch._dynamo
from kcd_adapters.cli import main
from kcd_adapters.hosts import install, loader
from kcd_adapters.watching import watcher
torch.set_num_threads(1)
for line in sys.stdin:
    output, *command = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        for number in (1, 2):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        status = 1
        try:
            status = main(command)
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Loops:
    """Runs loops in a process that has torch already."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(
        self,
        folder: Path,
        loop: str,
        *options: str,
        epochs: int = 4,
        status: int = 0,
        script: Path = LOOPS,
    ) -> tuple[str, Notes]:
        """What a loop printed, and what it noted."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        output, record = folder / "output", folder / "record"
        options = options if options[:1] == ("--profile",) else ("--auto", *options)
        command = ("run", *ONCE, *options, str(script), loop, str(record), str(epochs))
        print("\t".join([str(output), *command]), file=self._server.stdin, flush=True)
        ended = int(self._server.stdout.readline())
        text = output.read_text()
        assert ended == status, text
        return text, pickle.loads(record.read_bytes())

    def close(self) -> None:
        self._server.communicate()


@pytest.fixture(scope="module")
def loops() -> Iterator[Loops]:
    made = Loops()
    yield made
    made.close()


def check(notes: Notes, sizes: list[int] = SIZES, *, warmup: int = 0) -> None:
    """Whether the student's epochs drew what follows from its own predictions."""
    train = [one for one in notes if one[0] == "train"]
    record = -np.ones((N, len(sizes)))
    kept = list(range(N))
    for epoch, size in enumerate(sizes, 1):
        batches = [one for one in train if one[1] == epoch]
        drawn = [i for _, _, indices, _ in batches for i in indices]
        assert len(kept) == size
        assert sorted(drawn) == sorted(kept)
        for _, _, indices, logits in batches:
            for i, row in zip(indices, logits, strict=True):
                record[i, epoch - 1] = reference.entropy(row)
        if epoch < warmup:
            continue
        value, count = reference.recorded(record)
        kept = reference.condense(value, count, previous=size, target=(sizes + sizes[-1:])[epoch]).kept
    assert {one[1] for one in train} == set(range(1, len(sizes) + 1))


@pytest.mark.parametrize(
    ("loop", "said"),
    [
        ("plain", "the student is Net, 16 x 5: the last such output"),
        ("smoothing", "no other had a gradient"),
        ("simkd", "the student is SimKD (its output 1), 16 x 5: "),
        ("sobolev", "also seen: Other, 16 x 5 (no optimizer steps it)"),
        ("tiled", "the student is Net, 32 x 5"),
        ("interleaved", "the student is Net, 48 x 5"),
        ("distiller", "the student is DataParallel of Distiller (its output 0), 16 x 5"),
        ("losses_alone", "the student is Net, 16 x 5"),
        ("besides", "the student is Two (its output 0), 16 x 5"),
        ("two_backwards", ""),
        ("prefetched", ""),
        ("dicts", "the student is Classifier (its output logits), 16 x 5"),
        ("amp", ""),
        ("compiled", "the student is OptimizedModule of Net, 16 x 5"),
        ("checkpointed", ""),
        ("closure", "a model that an optimizer (LBFGS) steps"),
        ("validated", ""),
        ("unlabelled", "called 2 times a batch, the last that is compared with its labels counts"),
        ("unlabelled_smoothing", "called 2 times a batch, the last that is compared with its labels counts"),
        ("shared_head", "the student is Net, 16 x 5"),
        ("tokens", "the student is Deit (its output 0), 16 x 5"),
        ("attacked", ""),
    ],
)
def test_what_is_drawn_follows_from_what_the_loop_itself_predicted(
    loops: Loops, tmp_path: Path, loop: str, said: str
) -> None:
    output, notes = loops.run(tmp_path, loop)
    check(notes)
    assert said in output
    assert f"{sum(SIZES)} samples drawn, {sum(SIZES)} of them observed" in output


class Ids:
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.parametrize("select", ["random", "rs2"])
def test_sets_by_chance_are_those_of_a_loop_of_ones_own(loops: Loops, tmp_path: Path, select: Any) -> None:
    output, notes = loops.run(tmp_path, "plain", "--select", select)  # whose script sets torch's seed to 1
    schedule, data = kcd.CondensationSchedule(0.5, 2, 1), DataLoader(Ids(), batch_size=16, shuffle=True)
    loader = kcd.wrap_loader(data, schedule=schedule, select=select, seed=1)
    for epoch, size in enumerate(SIZES, 1):
        drawn = sorted(i for one in notes if one[:2] == ("train", epoch) for i in one[2])
        assert drawn == loader.sampler.kept.tolist()
        assert len(drawn) == size
        for batch in loader:
            loader.record(values=torch.ones(len(batch)))
        loader.end_epoch()
    assert f"kcd: ratio 0.5 in 2 stages of 1 epoch, select {select}, negatives from the kept set" in output
    assert "stage 1 after epoch 1: 68 of 90 kept, 22 dropped, 0 mixed, 0 of 90 samples saved" in output


#: What scripts do to logging. None of it concerns the lines of kcd.
LOGGING = {
    "nothing": "",
    "terminal": "logging.basicConfig(level=logging.INFO)",
    "file": "logging.basicConfig(filename=folder / 'log', level=logging.DEBUG)",
    "dictConfig": "logging.config.dictConfig({'version': 1, 'root': {'level': 'ERROR'}})",
    "dictConfig in each step": "import torch.optim.optimizer as of\n"
    "of.register_optimizer_step_pre_hook(lambda *_: logging.config.dictConfig({'version': 1}))",
    "quiet": "logging.getLogger().setLevel(logging.ERROR)",
    "no logging": "logging.disable(logging.CRITICAL)",
    "all loggers": "for name in logging.root.manager.loggerDict:\n"
    "    logging.getLogger(name).handlers, logging.getLogger(name).propagate = [], True\n"
    "    logging.getLogger(name).setLevel(logging.ERROR)",
    "stdout": "sys.stdout = open(folder / 'log', 'w')",
    "own handler": "logging.getLogger('kcd').addHandler(logging.FileHandler(folder / 'log'))",
}


@pytest.mark.parametrize("setup", LOGGING)
def test_each_line_is_printed_once_whatever_the_script_does_to_logging(
    loops: Loops, tmp_path: Path, setup: str
) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import logging, logging.config, pathlib, runpy, sys\n"
        "folder = pathlib.Path(__file__).parent\n"
        f"{LOGGING[setup]}\n"
        f"runpy.run_path({str(LOOPS)!r}, run_name='__main__')\n"
    )
    output, _ = loops.run(tmp_path, "plain", script=script)
    log = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    if setup == "stdout":
        output += log
    lines = output.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        f"kcd: '{tmp_path.name}'",
        "kcd: ratio 0.5 in 2 stages of 1 epoch",
        "kcd: the student is Net",
        "kcd: the student trains on Data",
        "kcd: stage 1 after epoch 1: 68 of 90 kept",
        "kcd: stage 2 after epoch 2: 46 of 90 kept",
        "kcd: stage 3 after epoch 3: 45 of 90 kept",
        "kcd: 4 epochs",
    ]
    assert "22 dropped, 0 mixed, cut " in lines[4]
    assert lines[5].endswith(", 22 of 180 samples saved so far (12.2%)")
    if setup == "own handler":
        assert log.splitlines() == [line.removeprefix("kcd: ") for line in lines[2:]]
    elif setup != "stdout":
        assert "stage" not in log


def test_a_script_that_resumes_is_told_that_kcd_starts_again(loops: Loops, tmp_path: Path) -> None:
    output, notes = loops.run(tmp_path, "resumed")
    check(notes)
    assert output.count("WARNING: an optimizer was given a saved state. If the script") == 1
    assert output.count("WARNING") == 1


def test_a_phase_before_the_students_own_counts_nothing(loops: Loops, tmp_path: Path) -> None:
    check(loops.run(tmp_path, "hints", "--if-unobserved", "warn")[1])


def test_another_model_that_takes_over_begins_anew(loops: Loops, tmp_path: Path) -> None:
    output, notes = loops.run(tmp_path, "teacher_first", "--warmup", "2")
    check(notes, [90, 90, 68, 46], warmup=2)
    assert "another model is trained now, after Other, 16 x 5: KCD begins anew with it" in output


def test_another_model_that_takes_over_a_set_stops_the_run(loops: Loops, tmp_path: Path) -> None:
    output, notes = loops.run(tmp_path, "teacher_long", status=1)
    assert "another model is trained now, Net, 16 x 5, after Other, 16 x 5" in output
    assert "with --student Net (or its number, 2)" in output
    assert len([one for one in notes if one[0] == "train"]) == 1


@pytest.mark.parametrize(("loop", "times"), [("own_loaders", 1), ("own_loaders_looked_at", 0)])
def test_training_that_goes_on_over_another_loader_is_warned_of_once(
    loops: Loops, tmp_path: Path, loop: str, times: int
) -> None:
    output, notes = loops.run(tmp_path, loop)
    assert output.count("WARNING: training continues over another loader than the one") == times
    if times:  # of the student's epochs, all are plain
        assert "Data in batches of 16; what it draws is neither condensed nor recorded" in output
        assert [len(one[2]) for one in notes if one[0] == "train"] == [16, 16, 16, 16, 16, 10] * 4
        (tmp_path / "output").unlink()
        output, notes = loops.run(tmp_path, loop, "--student", "Net")
        check(notes)
        assert "WARNING" not in output


@pytest.mark.parametrize("student", ["Net", "2"])
def test_the_student_can_be_named(loops: Loops, tmp_path: Path, student: str) -> None:
    output, notes = loops.run(tmp_path, "teacher_long", "--student", student)
    check(notes)
    assert f"Other is trained, which is not the --student {student}" in output
    assert "If it is the student, stop here, and give --student Other (or its number, 1)" in output
    for epoch in (1, 2, 3):
        assert sorted(i for one in notes if one[:2] == ("teacher", epoch) for i in one[2]) == list(range(N))


@pytest.mark.parametrize("loop", ["mutual", "mutual_together"])
def test_of_two_models_that_are_trained_at_once_one_must_be_named(
    loops: Loops, tmp_path: Path, loop: str
) -> None:
    output, notes = loops.run(tmp_path, loop, status=1)
    assert "two models are trained at once, Net, 16 x 5 and Other, 16 x 5" in output
    assert "with --student Net (or its number, 1) or --student Other (or its number, 2)" in output
    assert len(notes) == 1
    (tmp_path / "output").unlink()
    check(loops.run(tmp_path, loop, "--student", "Net")[1])


def test_a_head_that_learns_the_labels_beside_the_student_is_not_taken_for_it(
    loops: Loops, tmp_path: Path
) -> None:
    output, notes = loops.run(tmp_path, "auxiliary", status=1)
    assert "two models are trained at once, Net (its output 1), 16 x 5 and Head, 16 x 5" in output
    assert "with --student Net or --student Head" in output
    assert len(notes) == 1
    (tmp_path / "output").unlink()
    check(loops.run(tmp_path, "auxiliary", "--student", "Net")[1])


@pytest.mark.parametrize(
    ("loop", "said", "steps"),
    [
        ("wide_feature", "Wide returns several tensors of 16 x 5, 0 and 1, and no loss is given one", 1),
        ("many_rows", "Net, 32 x 5 gives 2 rows for each of the 16 samples of a batch", 1),
        ("mixup", "cross_entropy is given two orders of the batch's labels: images are mixed", 0),
        ("mixup_soft", "cross_entropy is given labels of two classes each: images are mixed", 0),
        ("renumbered", "RuntimeError: predictions were seen with other labels than the batch has", 2),
        ("soft_entropy", "the predictions of Net, 16 x 5 can't be matched with their batches", 3),
        ("smoothed", "the predictions of Net, 16 x 5 can't be matched with their batches", 3),
    ],
)
def test_what_can_not_be_recorded_rightly_stops_the_run_at_once(
    loops: Loops, tmp_path: Path, loop: str, said: str, steps: int
) -> None:
    output, notes = loops.run(tmp_path, loop, status=1)
    assert said in output
    assert len(notes) == steps


@pytest.mark.parametrize("loop", ["soft", "mixup_by_hand"])
def test_where_the_classes_are_not_known_either_it_stops_after_the_first_epoch(
    loops: Loops, tmp_path: Path, loop: str
) -> None:
    output, notes = loops.run(tmp_path, loop, status=3)
    assert "no labels were seen: neither cross_entropy nor nll_loss nor a module was given" in output
    assert {one[1] for one in notes} == {1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--student", "0"), "student must be a class's name, or a number from 1, got '0'"),
        (("--student", "Net", "--profile", "sskd"), "argument --profile: not allowed with argument --auto"),
    ],
)
def test_a_student_that_can_not_be_meant_is_refused(
    loops: Loops, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    (tmp_path / "record").write_bytes(pickle.dumps([]))
    assert said in loops.run(tmp_path, "plain", *options, status=2)[0]


def test_a_student_goes_with_the_profile_auto_alone() -> None:
    with pytest.raises(
        ValueError, match="student names a model for the profile auto, and no other takes it: add --auto"
    ):
        Settings(profile="sskd", student="Net")


def test_a_profile_can_watch_in_a_way_of_its_own(loops: Loops, tmp_path: Path) -> None:
    profile = tmp_path / "mine.py"
    profile.write_text(
        """
from kcd_adapters.profiles import Profile


def prepare(running):
    def act(functional):
        entropy = functional.cross_entropy

        def watched(logits, labels, **named):
            running.observe(logits, labels)
            return entropy(logits, labels, **named)

        functional.cross_entropy = watched

    running.when_imported("torch.nn.functional", act)


PROFILE = Profile(name="mine", title="Mine", prepare=prepare)
"""
    )
    output, notes = loops.run(tmp_path, "plain", "--profile", str(profile))
    check(notes)
    assert "kcd: Mine" in output


def test_processes_that_the_script_spawns(loops: Loops, tmp_path: Path) -> None:
    output, _ = loops.run(tmp_path, "ranks")
    both = [pickle.loads((tmp_path / f"record.{rank}").read_bytes()) for rank in (0, 1)]
    for epoch, size in enumerate(SIZES, 1):
        if size % 2:  # the second rank's last sample pads it: drawn twice, recorded once
            last = next(one for one in reversed(both[1]) if one[1] == epoch)
            last[2].pop()
    check([(*one[:3], one[3][: len(one[2])]) for rank in both for one in rank])
    assert output.count("the student is DistributedDataParallel of Net, 8 x 5") == 1


def test_of_two_models_of_one_class_only_the_numbers_are_named(loops: Loops, tmp_path: Path) -> None:
    assert "with --student 1 or --student 2\n" in loops.run(tmp_path, "twins", status=1)[0]
    (tmp_path / "output").unlink()
    check(loops.run(tmp_path, "twins", "--student", "1")[1])
