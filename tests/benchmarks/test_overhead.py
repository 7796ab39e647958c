"""benchmarks/overhead.py: what it refuses, what it times, what it counts, and what it says of that."""

import json
import sys
import time
import warnings
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import kcd_core as kcd

pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import overhead
from _common import compiler, counting, progress
from _gpu import step as step_part
from _gpu.part import Part
from _overhead import command, loop, measure, pairs, recorders, report

sys.path.pop(0)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads():
    """Of torch; what is tested sets them."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--samples", "63"], "--samples must be at least 64, got 63"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--batch-size", "8"], "--batch-size goes with --teacher and --student"),
        (["--classes", "1"], "--classes must be at least 2, got 1"),
        (["--classes", "10"], "--classes goes with --teacher and --student"),
        (["--input", "3,32,32"], "--input goes with --teacher and --student"),
        (["--input", "3,0,32"], "--input: must be whole numbers from 1 on, such as 3,224,224; got 3,0,32"),
        (["--steps", "0"], "--steps must be at least 2, got 0"),
        (["--warmup", "-1"], "--warmup must be at least 0, got -1"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--amp", "int8"], "argument --amp: invalid choice: 'int8'"),
        (["--device", "foo"], "--device must be cpu, cuda or cuda:N, got foo"),
        (["--device", "mps"], "--device must be cpu, cuda or cuda:N, got mps"),
        (["--device", "cuda:99"], "--device cuda:99: this torch sees"),
        (["--teacher", "resnet18"], "--teacher and --student go together"),
        (["--teacher", "a:b", "--student", "a:b", "--pairs", "tiny"], "--pairs names what is built in"),
    ],
)
def test_options_out_of_bounds(options, reason, capsys):
    with pytest.raises(SystemExit) as ended:
        overhead.main(options)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.fixture
def torchvision(monkeypatch):
    models = Namespace(
        list_models=lambda module: ["a", "b"], get_model=lambda name, num_classes: nn.Linear(3, num_classes)
    )
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setitem(sys.modules, "torchvision", Namespace(models=models))


@pytest.mark.usefixtures("torchvision")
def test_names_of_torchvision(capsys):
    pair = ["--teacher", "a", "--student", "b", "--batch-size", "4000"]
    for options, reason in (
        (pair, "--samples must be at least 4000, got 2048"),
        ([*pair[:3], "c"], "c is no classifier of torchvision"),
    ):
        with pytest.raises(SystemExit):
            overhead.main(options)
        assert reason in capsys.readouterr().err
    assert pairs.maker("--teacher", "a", 10)().out_features == 10


@pytest.mark.parametrize(
    ("device", "options", "dtype", "name"),
    [
        ("cpu", [], None, "overhead-cpu"),
        ("cpu", ["--amp"], "bfloat16", "overhead-cpu-amp"),
        ("cpu", ["--amp", "float16", "--compile"], "float16", "overhead-cpu-amp-float16-compile"),
        ("cuda", ["--amp"], "float16", "overhead-cuda-amp"),
        ("cuda", ["--amp", "bfloat16"], "bfloat16", "overhead-cuda-amp-bfloat16"),
        ("cpu", ["--teacher", "a", "--student", "b"], None, "overhead-cpu-a-b"),
        (
            "cpu",
            ["--teacher", "m.x:a", "--student", "b", "--classes", "9"],
            None,
            "overhead-cpu-m.x-a-b-3x224x224-9",
        ),
    ],
)
def test_precision_and_pair_are_in_the_name(device, options, dtype, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    parser, args = command.parse("", ["--device", device, *options])
    assert args.amp == dtype
    assert command.called(parser, args, torch.device(device)) == name


# -- the user's own models -------------------------------------------------------------------------------

MODELS = """
import torch
from torch import nn

class Head(nn.Linear):
    def __init__(self, num_classes):
        super().__init__(5, num_classes)

def seven():
    return nn.Linear(5, 7)

def passed_on(**kwargs):
    return Head(**kwargs)

def needs(depth):
    return nn.Linear(5, depth)

def text():
    return "model"

def pair():
    model = seven()
    model.forward = lambda x: (x, x)
    return model

frozen = lambda: seven().requires_grad_(False)
number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(MODELS)
    (tmp_path / "own_broken.py").write_text("import no_such_module_at_all")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("own_models", "own_broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("student", "reasons"),
    [
        ("own_models:", ["--student takes module:function", "got own_models:"]),
        ("own_missing:f", ["--student takes module:function", "got own_missing:f", "No module named"]),
        ("own_broken:f", ["importing own_broken", "No module named 'no_such_module_at_all'"]),
        ("own_models:eight", ["own_models has no eight"]),
        ("own_models:number", ["own_models:number, which is int"]),
        (
            "own_models:needs",
            ["--student takes a function that can be called without arguments", "TypeError"],
        ),
        ("own_models:text", ["--student takes a function that returns an nn.Module", "returned str"]),
        ("own_models:pair", ["--student takes a model that returns logits", "[4, 7]", "returned tuple"]),
        ("own_models:frozen", ["--student takes a model with parameters to train"]),
    ],
)
@pytest.mark.usefixtures("own")
def test_models_that_can_not_be_measured(student, reasons, capsys):
    options = ["--input", "5", "--classes", "7", "--batch-size", "4", "--out", "out"]
    with pytest.raises(SystemExit) as ended:
        overhead.main(["--teacher", "own_models:seven", "--student", student, *options])
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    for reason in reasons:
        assert reason in said
    assert not Path("out").exists()


@pytest.mark.usefixtures("own")
def test_models_that_do_not_fit_what_is_said_of_them(capsys):
    for options, reason in (
        (["--input", "6"], "--teacher takes a model for a batch of shape [64, 6]"),
        (
            ["--input", "5", "--classes", "8"],
            "a tensor of shape [64, 8] (--batch-size and --classes); it returned ",
        ),
    ):
        with pytest.raises(SystemExit):
            overhead.main(["--teacher", "own_models:seven", "--student", "own_models:seven", *options])
        assert reason in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("own")
def test_a_pair_of_ones_own_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(command, "without_a_step", lambda arm: dict.fromkeys(
        ("operations", "synchronisations", "bytes_to_host", "bytes_per_sample", "stage_end_s"), 0.0))  # fmt: skip
    arguments = (
        "--quick --teacher own_models:Head --student own_models:passed_on --input 5 --classes 9 --batch-size 16 "
        "--samples 64 --amp --out out"
    )
    overhead.main(arguments.split())
    told = json.loads(
        Path("out/overhead-cpu-amp-own_models-Head-own_models-passed_on-5-9-trial.json").read_text()
    )
    (pair,) = told["pairs"]
    assert (pair["batch"], pair["shape"], pair["classes"]) == (16, [5], 9)
    assert pair["rounds"] == 2
    assert pair["arms"]["kcd"]["ratio_95"] is None
    captured = capsys.readouterr()
    assert captured.out.count("(no interval), too few rounds for a verdict") == 2
    assert "whole steps" in captured.err


# -- what is timed ---------------------------------------------------------------------------------------


def test_a_quick_run_writes_a_trial(tmp_path, capsys):
    overhead.main(["--quick", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {
        f"overhead-cpu-trial.{x}" for x in ("json", "txt", "png")
    }
    told = json.loads((tmp_path / "overhead-cpu-trial.json").read_text())
    (pair,) = told["pairs"]
    for arm in ("kcd", "authors", "infobatch"):
        row = pair["arms"][arm]
        assert row["added_us"] > 0
        low, high = row["ratio_95"]
        assert low <= row["ratio"] <= high
        assert not {"kernels", "syncs_warned", "peak_bytes"} & row.keys(), "CUDA's alone"
    assert told["recording"]["kcd"]["synchronisations"] == 0
    assert told["recording"]["authors"]["synchronisations"] == 1


@pytest.mark.parametrize("alone", [False, True])
def test_the_device_is_idle_before_a_recording_that_is_timed_alone(monkeypatch, alone):
    events = []
    monkeypatch.setattr(loop, "sync", lambda device: events.append("sync"))
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, closure=None: events.append("update"))
    loader = [(torch.arange(4), torch.ones(4, 3), torch.arange(4))]
    model = nn.Linear(3, 5)
    arm = loop.Loop("authors", model, model, loader, loop.Settings(CPU, samples=4))
    arm.recorder = Namespace(record=lambda *_: events.append("record"))
    assert (arm.record_alone() if alone else arm.step()) > 0
    assert events == (["sync", "record"] if alone else ["sync", "update", "record", "sync"])


def test_a_step_is_recorded_again_with_its_logits_and_drawn_without():
    records = []
    loader = [(torch.arange(4), torch.ones(4, 3), torch.arange(4))]
    model = nn.Linear(3, 5)
    arm = loop.Loop("authors", model, model, loader, loop.Settings(CPU, samples=4))
    arm.recorder = Namespace(record=lambda indices, logits, losses: records.append((indices, logits)))
    arm.step()
    arm.again(2)
    arm.again(3, recorded=False)
    assert len(records) == 3
    assert all(torch.equal(logits, records[0][1]) for _, logits in records)


def test_rounds_end_with_their_time_but_not_before_the_fewest():
    def arm():
        calls.append(1)
        return float(len(calls))

    quiet = progress.Progress()
    for until, rounds in ((None, 7), (time.monotonic() - 1, 3), (time.monotonic() + 1e6, 7)):
        calls = []
        seconds = loop.in_turns({"arm": arm}, 7, quiet, until=until, least=3)["arm"]
        assert seconds.tolist() == list(range(1, 1 + rounds))


def test_a_window_is_the_mean_of_its_steps():
    seconds = np.ones(2 * counting.WINDOW + 5)
    seconds[counting.WINDOW - 1] = 33.0  # what is done once in a window
    assert measure.windows(seconds).tolist() == [2.0, 1.0]


def test_figures_have_intervals_of_their_own():
    rng = np.random.default_rng(0)
    steps = {arm: rng.normal(1.0, 0.01, 100) for arm in recorders.ARMS}
    alone = {"kcd": rng.normal(1.0, 0.02, 10), "authors": rng.normal(2.0, 0.02, 10), "infobatch": np.ones(10)}
    rows = measure.figures(steps, alone)
    low, high = rows["kcd"]["added_to_authors_95"]
    assert 0.4 < low < rows["kcd"]["added_to_authors"] < high < 0.6
    low, high = rows["kcd"]["ratio_95"]
    assert 0.9 < low < 1 < high < 1.1
    few = measure.figures(steps, {arm: own[:5] for arm, own in alone.items()})
    assert few["kcd"]["added_to_authors_95"] is None
    assert few["kcd"]["ratio_95"] == rows["kcd"]["ratio_95"]


@pytest.mark.parametrize(
    ("ratio", "share", "verdicts"),
    [
        ([0.99, 1.0], [0.5, 0.6], ["met", "met"]),
        ([1.0, 1.01], [0.6, 0.8], ["can't tell", "can't tell"]),
        ([1.01, 1.02], [0.8, 0.9], ["missed", "missed"]),
        ([1.01, 1.02], None, ["missed", "can't tell"]),
    ],
)
def test_verdicts_respect_the_interval(ratio, share, verdicts):
    row = {"ratio": 1.0, "ratio_95": ratio, "added_to_authors": 0.6, "added_to_authors_95": share}
    assert [line.rsplit(", ", 1)[1] for line in report.targets(row, 30)] == verdicts
    few = [line.rsplit(", ", 1)[1] for line in report.targets(row, 29)]
    assert few == ["too few rounds for a verdict"] * 2


def test_progress_is_a_line_now_and_then_or_one_rewritten_in_place(capsys, monkeypatch):
    lines = progress.Progress(every=3600)
    lines.begin("steps")
    lines.at(1, 10)
    lines.end()
    assert capsys.readouterr().err == "steps, 0 s\n"
    often = progress.Progress(every=0)
    often.begin("steps")
    often.at(1, 10)
    assert capsys.readouterr().err == "steps, 0 s\nsteps, 1 of 10, 0 s\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    live = progress.Progress()
    live.begin("longer")
    live.begin("short")
    live.end()
    assert capsys.readouterr().err == "\rlonger, 0 s\rshort, 0 s \r          \r".replace(
        "          ", " " * 10
    )


# -- what is counted -------------------------------------------------------------------------------------


def test_infobatch_is_charged_what_it_adds():
    """A copy of the weights to the device, a product, a copy of the losses to the host: no second mean, no graph."""
    assert recorders.count("infobatch", steps=4) == {
        "operations": 3.0,
        "synchronisations": 1.0,
        "bytes_to_host": 256.0,
    }
    recorder = recorders.InfoBatch(4, CPU)
    losses = torch.arange(4.0, requires_grad=True)
    recorder.record(torch.tensor([3, 1, 2, 0]), None, losses)
    assert recorder.scores.tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize(
    ("operations", "call"),
    [
        (0, lambda x: x.detach()),
        (0, lambda x: x.view(-1).narrow(0, 1, 9).unsqueeze(0).expand(2, -1)),
        (0, lambda x: x.t().split(2)),
        (0, lambda x: x.t_()),
        (0, lambda x: torch.empty_like(x)),
        (0, lambda x: x.new_empty(3)),
        (0, lambda x: torch.empty(3, device=x.device)),
        (0, lambda x: torch.ones(3).sum()),  # in host memory
        (0, lambda x: x.contiguous()),
        (1, lambda x: x.clone()),
        (1, lambda x: x.double()),
        (1, lambda x: x.sort()),  # two tensors are made
        (1, lambda x: x.zero_()),
        (1, lambda x: torch.cat([x, x])),
        (1, lambda x: torch.ones(3).to(x.device)),
        (2, lambda x: (x + 1).exp()),
    ],
)
def test_only_what_launches_or_copies_counts(operations, call):
    with counting.fake_cuda() as device:
        x = torch.ones(4, 4, device=device)
        with counting.Counter() as counter:
            call(x)
    assert counter.operations == operations, counter.seen
    assert counter.synchronisations == 0


def test_a_copy_to_the_host_is_a_synchronisation():
    with counting.fake_cuda() as device:
        x = torch.ones(4, 4, device=device)
        with counting.Counter() as counter:
            x.sum(1).cpu()
    assert (counter.operations, counter.synchronisations, counter.bytes_to_host) == (2, 1, 16)


def test_fake_tensors_are_recorded_where_a_device_is_too(monkeypatch):
    """Memory is not pinned for them, which torch can't do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert recorders.count("kcd", steps=counting.WINDOW)["operations"] > 1
    assert torch.cuda.is_available()


def test_a_trace_is_tallied_by_category():
    names = [
        ("kernel", "elementwise"), ("kernel", "reduce"), ("gpu_memcpy", "Memcpy DtoH"), ("gpu_memset", "Memset"),
        ("cuda_runtime", "cudaStreamSynchronize"), ("cuda_runtime", "cudaDeviceSynchronize"),
        ("cuda_runtime", "cudaMemcpy"), ("cuda_driver", "cuStreamSynchronize"),
        # none of these waits
        ("cuda_runtime", "cudaMemcpyAsync"), ("cuda_runtime", "cudaLaunchKernel"), ("cuda_driver", "cuLaunchKernel"),
        ("cuda_runtime", "cudaStreamIsCapturing"), ("cpu_op", "aten::add"), ("gpu_user_annotation", "step"),
    ]  # fmt: skip
    events = [{"ph": "X", "cat": category, "name": name} for category, name in names]
    events += [{"ph": "s", "cat": "kernel", "name": "an arrow"}, {"ph": "M", "name": "process_name"}]
    assert counting.tallied(events) == {"kernels": 2, "copies": 2, "syncs_profiled": 4}


@pytest.mark.parametrize("counts", [True, False])
def test_what_is_done_without_recording_is_taken_off(monkeypatch, counts):
    runs = {"run": (69, 3, 34, 4), "idle": (5, 3, 2, 2)}

    def profiled(call, device):
        keys = ("kernels", "copies", "syncs_profiled")
        return dict(zip(keys, runs[call()], strict=False)) if counts else None

    monkeypatch.setattr(counting, "_started", lambda device: None)
    monkeypatch.setattr(counting, "profiled", profiled)
    monkeypatch.setattr(counting, "warned", lambda call, device: runs[call()][3] if counts else None)
    monkeypatch.setattr(counting, "peak", lambda call, device: (1500, 1000))
    counted = counting.on_device(lambda: "run", counting.counts(lambda: "idle", CPU), CPU, 32)
    assert counted.pop("recording_peak_bytes") == 500
    assert list(counted.values()) == ([2.0, 0.0, 1.0, 0.0625] if counts else [None] * 4)


def test_warnings_of_synchronisations_are_counted(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def wait(times=1):
        for _ in range(times):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
        warnings.warn("the mode does not yet detect all synchronizing operations", stacklevel=2)

    assert counting.warned(wait, CPU) is None, "it does not warn of what waits for certain"
    monkeypatch.setattr(torch, "zeros", lambda *_, device: Namespace(item=wait))
    assert counting.warned(lambda: wait(3), CPU) == 3
    assert modes == ["warn", 0] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="a profiler that fails is needed")
def test_a_profiler_that_fails_counts_nothing():
    with pytest.warns(UserWarning, match="torch's profiler counted nothing"):
        assert counting.profiled(lambda: None, CPU) is None


@pytest.mark.filterwarnings("ignore:CUDA is not available, disabling CUDA profiling")
def test_what_is_counted_on_a_device_is_in_the_table(monkeypatch, capsys):
    """The device's own functions stand in for it: they are asked for each arm, around steps of its own."""
    for name, value in {
        "synchronize": None, "reset_peak_memory_stats": None, "get_sync_debug_mode": 0, "set_sync_debug_mode": None,
        "memory_allocated": 1_000_000, "max_memory_allocated": 1_250_000,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(counting, "tallied", lambda events: {"kernels": 64, "copies": 1, "syncs_profiled": 0})
    pair, settings = (
        replace(pairs.PAIRS["tiny"], batch=8),
        loop.Settings(CPU, samples=16, rounds=1, windows=1),
    )
    loops = measure.arms(pair, settings)
    rows = measure.figures(
        {arm: np.array([loops[arm].step(), 1.0]) for arm in loops},
        {arm: np.ones(2) for arm in recorders.RECORDERS},
    )
    idle = counting.counts(lambda: loops["kd"].again(counting.WINDOW, recorded=False), CPU)
    for arm, own in loops.items():
        rows[arm].update(measure.counted(own, idle, CPU))
    assert rows["kd"]["peak_bytes"] == 1_250_000
    assert "kernels" not in rows["kd"], "it records nothing"
    assert rows["kcd"]["recording_peak_bytes"] == 250_000
    assert rows["kcd"]["kernels"] == 0, "what is done without recording is taken off"
    result = {"pair": "tiny", "batch": 8, "rounds": 2, "windows": 2, "arms": rows}
    lines = report.table({"pairs": [result], "recording": {}}).splitlines()
    (head,) = [line for line in lines if "waits warned of" in line]
    row = lines[lines.index(head) + 2]
    assert row.split() == ["kcd", "0.00", "0.00", "0.00", "not", "seen", "1.2", "250.0"]
    for title, shown in (
        ("kernels", "0.00"),
        ("warned of", "not seen"),
        ("peak MB", "1.2"),
        ("peak kB", "250.0"),
    ):
        end = head.index(title) + len(title)
        assert row[:end].endswith(shown), "a column's figures end where its title does"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_launches_and_waits_are_counted_on_a_device():
    device = torch.device("cuda")
    x = torch.ones(64, device=device)

    def run():
        for _ in range(8):
            (x + 1).cpu()

    counted = counting.on_device(run, counting.counts(lambda: None, device), device, 8)
    assert counted["recording_peak_bytes"] > 0
    if counted["syncs_warned"] is not None:
        assert counted["syncs_warned"] == 1
    if counted["kernels"] is None:
        pytest.skip("torch's profiler does not see the device: CUPTI may be barred")
    for key in ("kernels", "copies", "syncs_profiled"):  # how many, a version's code may change
        assert 1 <= counted[key] <= 3, counted


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_pair_is_measured_on_a_device():
    settings = loop.Settings(torch.device("cuda"), samples=256, rounds=1, windows=1, seconds=1.0)
    result = measure.measure(pairs.PAIRS["tiny"], settings, progress.Progress())
    assert result["arms"]["kcd"]["syncs_warned"] in (0, None)
    assert result["arms"]["kd"]["peak_bytes"] > 0


# -- the part of benchmarks/gpu.py -----------------------------------------------------------------------


@pytest.fixture
def part(tmp_path):
    return Part("step", "cpu", False, None, tmp_path / "step.json", time.monotonic() + 1e6)


def measured(waits=0.0):
    rows = measure.figures(
        {arm: np.ones(9) for arm in recorders.ARMS}, {arm: np.ones(9) for arm in recorders.RECORDERS}
    )
    for row in rows.values():
        row.update(peak_bytes=10**6, kernels=2.0, copies=0.5, syncs_profiled=None, syncs_warned=waits)
    return {"pair": "tiny", "arms": rows, "start_s": 1.0}


def test_a_part_measures_each_pair_each_way(part, monkeypatch):
    monkeypatch.setattr(step_part, "no_compiler", lambda device: "")
    asked = []

    def measure(pair, settings, progress):
        asked.append((pair.name, settings.amp, settings.backend))
        assert settings.seconds < 1e6
        assert settings.until < part.deadline
        return measured()

    monkeypatch.setattr(step_part, "measure", measure)
    step_part.run(part)
    names = list(pairs.PAIRS)
    assert sorted(asked, key=str) == sorted(
        [(name, amp, None) for name in names for amp in (None, torch.bfloat16)]
        + [(name, None, "inductor") for name in names],
        key=str,
    )
    assert asked[0] == ("resnet32x4-resnet8x4", None, None), "most telling first"
    assert not part.failures
    figure = part.rows[0]["figure"]
    assert "launches 2.50" in figure
    assert "waits not counted by the profiler, 0.00 by the debug mode" in figure
    assert json.loads(part.out.read_text())["rows"][0]["arms"]["kcd"]["kernels"] == 2


def test_a_part_says_what_failed_and_what_was_left_out(part, monkeypatch):
    def measure(pair, settings, progress):
        if settings.amp:
            raise RuntimeError("no bfloat16 here\nat all")
        if pair.name == "tiny":
            part.deadline = time.monotonic()
        return measured(waits=1.0 if pair.name == "tiny" else -0.25)

    monkeypatch.setattr(step_part, "no_compiler", lambda device: "")
    monkeypatch.setattr(step_part, "measure", measure)
    step_part.run(part)
    assert part.failures == [
        "resnet32x4-resnet8x4, bfloat16 autocast: RuntimeError: no bfloat16 here",
        "tiny, float32: no recorded step waits: 1.00 synchronisations a step",
    ]
    left_out = [row["what"] for row in part.rows if row["figure"].startswith("left out: 0 s left")]
    assert left_out[:2] == ["tiny, compiled", "small, float32"]
    assert len(left_out) == 6


def test_a_quick_part_measures_the_smallest_pair_in_few_rounds(part, monkeypatch):
    part.quick, asked = True, []

    def measure(pair, settings, progress):
        asked.append(
            (pair.name, settings.rounds * (10 if pair.short else 1), settings.windows, settings.backend)
        )
        return measured()

    monkeypatch.setattr(step_part, "measure", measure)
    step_part.run(part)
    assert asked == [("tiny", 2, 1, None), ("tiny", 2, 1, None), ("tiny", 2, 1, "eager")]
    assert part.rows[-1]["figure"] == "left out: they are CUDA's"


def test_students_are_not_compiled_without_a_compiler(part, monkeypatch):
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    monkeypatch.setattr(step_part, "measure", lambda *_: measured())
    step_part.run(part)
    compiled = [row for row in part.rows if row["what"].endswith("compiled")]
    assert all(row["left_out"] and "there is no C++ compiler" in row["figure"] for row in compiled)
    assert len(compiled) == 3
    assert not part.failures


def test_what_compiling_needs(monkeypatch, tmp_path):
    """On CUDA: Triton, a C compiler, and the headers of Python, which it includes."""
    there = {"triton": True, "gcc": "/gcc", "clang": None}
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: there[name] or None)
    monkeypatch.setattr(compiler.shutil, "which", there.get)
    monkeypatch.setattr(compiler.sysconfig, "get_path", lambda name, scheme: str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    device = torch.device("cuda")
    assert compiler.no_compiler(device) == f"Python's headers are not installed ({tmp_path / 'Python.h'})"
    (tmp_path / "Python.h").touch()
    assert compiler.no_compiler(device) == ""
    monkeypatch.setenv("CC", "mine")
    assert compiler.no_compiler(device) == "there is no C compiler (mine)"
    monkeypatch.delenv("CC")
    there["gcc"] = None
    assert compiler.no_compiler(device) == "there is no C compiler (gcc or clang)"
    there["triton"] = False
    assert compiler.no_compiler(device) == "Triton is not installed"


@pytest.mark.parametrize(
    ("seconds", "took", "compiled"),
    [
        (1000, 10.0, 3),
        (1000, 500.0, 1),  # another one may take 750
        (40, 1.0, 0),  # less than what is allowed as long as none was seen
    ],
)
def test_compiling_is_begun_where_half_as_much_again_is_left(part, monkeypatch, seconds, took, compiled):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(step_part, "no_compiler", lambda device: "")
    part.deadline = seconds
    begun = []

    def measure(pair, settings, progress):
        assert clock[0] + settings.seconds < settings.until < part.deadline
        if settings.backend is None:
            return measured()
        begun.append(pair.name)
        clock[0] += took
        if compiled == 1:
            raise RuntimeError("as it was told to")
        return {**measured(), "start_s": took}

    monkeypatch.setattr(step_part, "measure", measure)
    step_part.run(part)
    assert len(begun) == compiled
    assert len(part.failures) == (compiled == 1)
    left_out = [row for row in part.rows if row.get("left_out") and row["what"].endswith("compiled")]
    assert len(left_out) == 3 - compiled
    assert all("compiling may take" in row["figure"] for row in left_out)


def test_a_measurement_ends_when_it_has_to(monkeypatch):
    ends = []

    def in_turns(calls, rounds, progress, *, until=None, least=2):
        ends.append(until)
        return {arm: np.ones(2 * counting.WINDOW) for arm in calls}

    monkeypatch.setattr(measure, "in_turns", in_turns)
    pair, now = replace(pairs.PAIRS["tiny"], batch=8), time.monotonic()
    for settings, latest in (
        (loop.Settings(CPU, samples=16, seconds=1e9, until=now + 1e6), now + 9e5),
        (loop.Settings(CPU, samples=16, until=now + 1e6), now + 9e5),
        (loop.Settings(CPU, samples=16, seconds=1e6), now + 9e5),
    ):
        ends.clear()
        measure.measure(pair, settings, progress.Progress())
        assert now < max(end for end in ends if end is not None) <= latest


def test_the_wrapped_arm_has_no_stage_end_in_its_steps():
    made = measure.arms(replace(pairs.PAIRS["tiny"], batch=8), loop.Settings(CPU, samples=16))
    assert isinstance(made["kcd"].loader, kcd.CondensedLoader)
    made["kcd"].step()
    made["kcd"].again(100)
    assert made["kcd"].loader.epoch > 40
    assert made["kcd"].loader.sampler.stage == 0
