"""benchmarks/gpu.py: its parts run on the CPU, and what goes wrong in one stays in it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SECONDS

import kcd_core as kcd

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX's")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import gpu  # noqa: E402
from _gpu import child, memory, process, rows, stage, tests  # noqa: E402
from _gpu.part import Part  # noqa: E402

sys.path.pop(0)

FAKES = {
    "well": "def run(part): part.add('a sum', '3 | 4', number=3)",
    "raises": """
def run(part):
    part.add('before', 'kept')
    raise ValueError('as it was told to')
""",
    "fails": """
import os, subprocess, sys
def run(part):
    part.fail('an equality', '1 is not 2')
    left = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
    part.add('after', 'runs', child=left.pid)
""",
    "crashes": "import os, signal\ndef run(part): os.kill(os.getpid(), signal.SIGKILL)",
    "hangs": """
import os, subprocess, sys, time
def run(part):
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
    part.add('before', 'kept', processes=[os.getpid(), child.pid])
    time.sleep(600)
""",
}
MARKED = {
    "test_skipped.py": """
import pytest
@pytest.mark.skip(reason='no device')
def test_skipped(): pass
""",
    "test_broken.py": "import there_is_no_such_module",
    "test_mixed.py": """
import warnings
def test_of_another_version(): warnings.warn('soon to go', DeprecationWarning)
def test_wrong(): assert 1 == 2, 'one is not two'
""",
}
OF_TESTS = """
from pathlib import Path
from _gpu import tests
def run(part):
    for names in (['test_skipped.py'], ['test_broken.py', 'test_mixed.py']):
        tests.files = lambda cuda: [str(Path(__file__).with_name(name)) for name in names]
        tests.run(part)
"""
STUBBORN = """
import json, os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
out = json.loads(sys.argv[1])["out"]
open(out + ".part", "w").write(json.dumps([os.getpid(), child.pid]))
os.rename(out + ".part", out)  # whole, whenever it is killed
time.sleep(600)
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Parts of these names; their modules can be imported by every process that is started."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name, text in FAKES.items():
        (folder / f"fake_{name}.py").write_text(text)
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *([before] if before else [])]))

    def named(*names: str) -> dict[str, Any]:
        return {name: gpu.Kind(f"fake_{name}", 100) for name in names}

    return named


def run(out: Path, *options: str) -> int:
    return gpu.main(["--device", "cpu", "--out", str(out), *options])


def told(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
        state = Path(f"/proc/{number}/stat")  # what has ended may wait for a parent to ask
        return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")
    except (ProcessLookupError, FileNotFoundError):
        return False


def until(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.filterwarnings("default")  # as in a process of its own
def test_every_part_runs_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two in a process of their own, as all are, and the others in this one, which has imported torch already."""
    there, threads = gpu.PARTS, torch.get_num_threads()
    assert set(there) == {
        path.stem for path in (BENCHMARKS / "_gpu").glob("[!_]*.py") if "\ndef run(" in path.read_text()
    }
    own_process = gpu.run_part

    def run_part(orders: dict[str, Any], seconds: float) -> tuple[str, str]:
        if orders["name"] in ("tests", "host"):
            return own_process(orders, seconds)
        failed = child.main({**orders, "deadline": time.monotonic() + seconds})
        return "exit status 1" if failed else "", ""

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(gpu, "run_part", run_part)
    monkeypatch.setattr(gpu, "SLACK", 100)  # it only matters that they run
    status = run(tmp_path, "--quick")
    torch.set_num_threads(threads)
    failed = {name: told(tmp_path / f"cpu-{name}-trial.json")["failures"] for name in there}
    assert failed == {name: [] for name in there}
    assert status == 0
    assert {x.name for x in tmp_path.iterdir()} == {"cpu-trial.md", *(f"cpu-{x}-trial.json" for x in there)}
    table = (tmp_path / "cpu-trial.md").read_text()
    for name in there:
        part = told(tmp_path / f"cpu-{name}-trial.json")
        assert part["ended"]
        assert part["machine"]["torch"] == torch.__version__
        assert part["rows"]
        for row in part["rows"]:
            assert f"| {name} | " + " ".join(row["what"].replace("|", "\\|").split()) in table


def test_a_part_that_fails_is_named_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "PARTS", fakes("raises", "crashes", "fails", "well"))
    assert run(tmp_path / "new" / "folder") == 1
    out = tmp_path / "new" / "folder"
    assert {x.name for x in out.iterdir()} == {"cpu.md", *(f"cpu-{name}.json" for name in gpu.PARTS)}
    lines = (out / "cpu.md").read_text().splitlines()
    assert f"torch {torch.__version__}" in lines[2]
    assert "device cpu" in lines[2]
    found = [line for line in lines if line.startswith("| **")]
    for line, name, reason in zip(
        found,
        gpu.PARTS,
        ("FAILED: ended early: ValueError: as it was told to", "FAILED: ended by SIGKILL",
         "FAILED: an equality: 1 is not 2", "done"),
        strict=True,
    ):  # fmt: skip
        assert line.startswith(f"| **{name}** | ")
        assert line.endswith(f" | {reason} |")
    assert "| raises | before | kept |" in lines
    assert r"| well | a sum | 3 \| 4 |" in lines
    printed = capfd.readouterr().out
    assert "ValueError: as it was told to" in printed
    assert "in run" in printed  # of the traceback
    left = told(out / "cpu-fails.json")["rows"][1]["child"]
    until(lambda: not alive(left), "a process was left")
    assert told(out / "cpu-crashes.json")["failures"] == ["ended by SIGKILL"]


def test_a_test_fails_the_part_and_a_warning_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Any
) -> None:
    """Nor does a module that can't be imported keep the others from running. That none ran is a failure."""
    for name, text in {**MARKED, "fake_tests.py": OF_TESTS}.items():
        (tmp_path / "fakes" / name).write_text(text)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setattr(gpu, "PARTS", fakes("tests"))
    assert run(tmp_path) == 1
    part = told(tmp_path / "cpu-tests.json")
    first, second, third = part["failures"]
    assert first == "pytest: no test ran: skipped: no device"
    assert second.endswith(": ModuleNotFoundError: No module named 'there_is_no_such_module'")
    assert third.endswith("::test_wrong: AssertionError: one is not two")
    mixed = next(row for row in part["rows"] if "test_wrong" in str(row.get("tests")))
    assert mixed["figure"] == "2 failed, 1 passed"
    assert [outcome.split()[0].rstrip(":") for outcome in mixed["tests"].values()] == [
        "failed",
        "passed",
        "failed",
    ]


def part_told(rows: str, *, why: str = "", ended: bool = True) -> dict[str, Any]:
    """What a part with these rows wrote: a small letter for one that was left out, ! for one that failed."""
    made: list[dict[str, Any]] = []
    for name in rows:
        made.append({"what": name.upper(), "figure": "1"})
        made[-1].update({"failed": True} if name == "!" else {"left_out": True} if name.islower() else {})
    return {"failures": [why] if why else [], "rows": made, **({"ended": True} if ended else {})}


def test_results_are_not_replaced_by_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial, final = tmp_path / "cpu-x-trial.json", tmp_path / "cpu-x.json"
    good, failed, cut = part_told("AB"), part_told("A!", why="why"), part_told("A", ended=False)
    for before, after, replaced, only in (
        (None, good, True, True), (None, failed, True, False), (failed, cut, True, False), (failed, good, True, True),
        (good, good, True, True), (good, failed, False, False), (good, cut, False, False),
        # rows that are left out are not there
        (good, part_told("Ab"), False, False), (good, part_told("ab"), False, False),
        (good, part_told("A"), False, False), (good, part_told("AC"), False, False),
        (good, part_told("ABC"), True, True), (part_told("Ab"), part_told("A"), True, True),
        (part_told("AB!", why="why"), cut, False, False), (part_told("AB!", why="why"), part_told("A"), False, False),
    ):  # fmt: skip
        for if_whole, expected in ((False, replaced), (True, only)):
            final.unlink(missing_ok=True)
            if before is not None:
                final.write_text(json.dumps(before))
            trial.write_text(json.dumps(after))
            settled = gpu.settled(gpu.Outcome("x", trial, after, 1.0, ""), if_whole=if_whole)
            assert settled.path == (final if expected else trial)
            assert (told(final) if final.exists() else None) == (after if expected else before)
            assert trial.exists() == (not expected)
    final.write_text(json.dumps(good))
    gpu.settled(gpu.Outcome("x", trial, part_told("Ab"), 1.0, ""))
    assert "cpu-x.json is not replaced: this run has no B" in capsys.readouterr().out


def test_one_part_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Any) -> None:
    """Its results are replaced, and the table is of all files: each part with the command that wrote it."""
    monkeypatch.setattr(gpu, "PARTS", fakes("raises", "well"))
    out = tmp_path / "out"
    out.mkdir()
    old = {"part": "raises", "command": "python before.py", "date": "2020", "machine": {"gpu": "mine"}}
    (out / "cpu-raises.json").write_text(json.dumps({**old, **part_told("A"), "seconds": 7.0}))
    assert run(out, "--only", "well") == 0
    assert {x.name for x in out.iterdir()} == {"cpu.md", "cpu-raises.json", "cpu-well.json"}
    lines = (out / "cpu.md").read_text().splitlines()
    assert "raises: `python before.py`, 2020; gpu mine" in lines
    (head,) = [line for line in lines if line.startswith("well: `")]
    assert f"torch {torch.__version__}" in head
    assert "| **raises** | 7.0 s | done |" in lines
    assert "| raises | A | 1 |" in lines
    assert r"| well | a sum | 3 \| 4 |" in lines
    # One that fails stays a trial, and the table as it is.
    assert run(out, "--only", "raises") == 1
    assert told(out / "cpu-raises.json")["command"] == "python before.py"
    assert (out / "cpu.md").read_text().splitlines() == lines
    assert "FAILED: ended early" in (out / "cpu-trial.md").read_text()
    assert told(out / "cpu-raises-trial.json")["failures"]


def test_a_part_over_its_limit_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one that takes no notice of being asked to."""
    (tmp_path / "child.py").write_text(STUBBORN)
    monkeypatch.setattr(process, "CHILD", (str(tmp_path / "child.py"),))
    monkeypatch.setattr(process, "GRACE", 0.2)
    out = tmp_path / "processes"
    seconds = 2.0
    while not out.exists():  # a busy machine takes its time to start a process
        why, _ = process.run_part({"out": str(out)}, seconds)
        assert why == f"over its limit of {seconds:.0f} s"
        seconds *= 2
    until(lambda: not any(map(alive, json.loads(out.read_text()))), "processes were left")


def test_a_process_that_can_not_be_killed_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is stuck in a driver: the next part runs all the same."""
    sent, waited = [], []

    class Stuck:
        pid, stdin, stderr = 7, sys.stdin, None

        def __init__(self, *_: Any, **__: Any) -> None:
            self.stdin = open(os.devnull)  # noqa: SIM115

        def poll(self) -> None:
            return None

        def wait(self, timeout: float) -> None:
            waited.append(timeout)
            raise subprocess.TimeoutExpired("it", timeout)

    monkeypatch.setattr(process.subprocess, "Popen", Stuck)
    monkeypatch.setattr(process, "signal_group", lambda number, what: sent.append((number, what)))
    why, _ = process.run_part({}, 3.0)
    assert why == "over its limit of 3 s; it can't be killed, and process 7 is left"
    assert sent == [(7, signal.SIGTERM), (7, signal.SIGKILL)]
    assert waited == [3.0, process.GRACE, process.GRACE]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_being_cut_off_loses_only_the_rest(tmp_path: Path, fakes: Any, how: signal.Signals) -> None:
    parts = {name: tuple(kind) for name, kind in fakes("well", "hangs").items()}
    start = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu; "
        f"gpu.PARTS = {{n: gpu.Kind(*k) for n, k in {parts}.items()}}; sys.exit(gpu.main())"
    )
    command = [sys.executable, "-c", start, "--device", "cpu", "--out", str(tmp_path / "out")]
    middle = tmp_path / "out" / "cpu-hangs-trial.json"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        try:
            until(lambda: middle.exists() or started.poll() is not None, "the part that hangs does not begin")
            assert started.poll() is None
            started.send_signal(how)
            printed = started.communicate(timeout=SECONDS)[0]
        finally:
            started.kill()
    assert told(tmp_path / "out" / "cpu-well.json")["ended"]
    rest = middle if how == signal.SIGKILL else tmp_path / "out" / "cpu-hangs.json"
    row = told(rest)["rows"][0]
    assert row["figure"] == "kept"
    until(lambda: not any(map(alive, row["processes"])), "processes were left")
    if how != signal.SIGKILL:
        assert started.returncode == 130
        table = (tmp_path / "out" / "cpu.md").read_text()
        assert "FAILED: interrupted" in table
        assert table in printed


def test_without_a_gpu_it_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "`--device cpu --quick` shows that all parts run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--data-dir", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert "there is no folder" in capsys.readouterr().err


def test_it_needs_no_installation(tmp_path: Path) -> None:
    """Without site-packages of its own there is only the checkout; `kcd_adapters` is a folder of another name there."""
    code = (
        f"import os, subprocess, sys; sys.path.insert(0, {str(BENCHMARKS)!r}); "
        "from _gpu.checkout import importable; "
        "sys.meta_path[:] = [x for x in sys.meta_path if 'editable' not in str(x).lower()]; "
        "sys.path[:] = [x for x in sys.path if not os.path.exists(os.path.join(x, 'kcd_adapters'))]; "
        "before = list(sys.path); importable(); assert sys.path != before, 'it is installed here'; "
        "import kcd_adapters, kcd_core; print(kcd_adapters.__file__); print(kcd_core.__file__); "
        "print(subprocess.check_output([sys.executable, '-S', '-c', "
        "'import kcd_adapters; print(kcd_adapters.__file__)'], text=True).strip())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    link, core, again = map(Path, done.stdout.split())
    assert link == again
    assert core.parent == BENCHMARKS.parent / "kcd_core"
    assert not link.exists(), "the folder with the link is removed at the end"
    assert (BENCHMARKS.parent / "adapters" / "__init__.py").exists(), "but not what it led to"


def test_only_files_with_a_test_that_is_marked_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tests" / "core"
    folder.mkdir(parents=True)
    (folder / "test_marked.py").write_text("@pytest.mark.cuda\ndef test(): ...")
    (folder / "test_told.py").write_text("# of cuda, and of mark.cudax; import there_is_no_such_module")
    monkeypatch.setattr(tests, "ROOT", tmp_path)
    assert tests.files(cuda=True) == [str(folder / "test_marked.py")]
    assert tests.files(cuda=False) == []
    monkeypatch.undo()
    assert "test_cuda_device.py" in {Path(name).name for name in tests.files(cuda=True)}
    assert [Path(name).name for name in tests.files(cuda=False)] == ["test_cuda.py"]


@pytest.mark.parametrize(
    ("seconds", "left_out"),
    [
        (100.0, []),
        (30.0, ["condense_step, 10,000,000 samples"]),  # 2 s, and 3 * 100 times 0.1 s
        (33.0, ["the set of 10,000,000 samples"]),  # 1.5 times what the device took then, 30 s
    ],
)
def test_a_size_there_is_no_time_for_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, left_out: list[str]
) -> None:
    """Going by the size before, with safety."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    part = Part("stage", "cpu", False, None, tmp_path / "x.json", seconds)
    part.device = argparse.Namespace(type="cuda")
    monkeypatch.setattr(part, "sync", lambda: None)
    monkeypatch.setattr(stage, "SIZES", (100_000, 10_000_000))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1e12, 1e12))
    monkeypatch.setattr(stage.os, "sysconf", lambda name: 10**6)
    chosen = kcd.CondensedSet(np.arange(2), 3)

    def staged(part: Any, tracker: Any, rounds: int) -> tuple[float, Any]:
        taken = 30.0 if tracker.samples == 10_000_000 else 0.1
        clock[0] += taken if taken == 30 else 0.0
        return taken, chosen

    class Tracker:
        def __init__(self, samples: int) -> None:
            self.samples = samples

        def to(self, place: None) -> Any:
            return self

    monkeypatch.setattr(stage, "staged", staged)
    monkeypatch.setattr(stage, "recorded", lambda part, samples: (Tracker(samples), None))
    stage.run(part)
    assert part.failures == []
    assert [row["what"] for row in part.rows if row.get("left_out")] == left_out
    assert len(part.rows) == 4 - (left_out == ["condense_step, 10,000,000 samples"])


def test_sums_that_there_is_no_time_for_are_not_there(tmp_path: Path) -> None:
    part = Part("recording", "cpu", True, None, tmp_path / "x.json", time.monotonic())
    rows.check_rows(part)
    assert part.failures == []
    kinds = len(rows.VALUES) * len(rows.DTYPES)
    assert all(row["left_out"] and f"after 0 of {kinds} kinds" in row["figure"] for row in part.rows)


def test_memory_is_counted() -> None:
    x = torch.ones(1000, 100)
    peak = memory.peak(x.device, lambda: (x * 2).add_(1).sum())
    assert peak >= 400_000
    assert peak < 450_000  # in place: one array at a time
    assert memory.peak(x.device, lambda: (x * 2 + 1) * (x * 3)) >= 3 * 400_000
    assert memory.peak(x.device, lambda: [(x * 2).sum() for _ in range(5)]) < 450_000  # freed in between
    assert memory.peak(x.device, lambda: np.exp(x.numpy())) >= 400_000


def test_a_value_of_more_than_its_row_is_found(tmp_path: Path) -> None:
    part = Part("recording", "cpu", True, None, tmp_path / "x.json", time.monotonic() + 1e6)
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(20, 10, generator=generator), torch.randn(20, 10, generator=generator)
    targets = torch.arange(20) % 10

    def of_its_batch(student_logits: Any, **_: Any) -> Any:
        return kcd.entropy(student_logits) + len(student_logits)

    def of_its_place(student_logits: Any, **_: Any) -> Any:
        return kcd.entropy(student_logits) + torch.arange(len(student_logits))

    for value, ways in (
        (kcd.margin, []),
        (of_its_batch, ["batches of 1 (20 of 20)", "batches of 16 (20 of 20)"]),
        (of_its_place, ["batches of 1 (19 of 20)", "batches of 16 (4 of 20)", "permuted"]),
    ):
        found = rows.differing(part, value, logits, teacher, targets)
        assert len(found) == len(ways)
        assert all(a.startswith(b) for a, b in zip(found, ways, strict=True))
