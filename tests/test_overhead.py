"""benchmarks/overhead.py: what it refuses, and what it times."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import overhead

sys.path.pop(0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--samples", "63"], "--samples must be at least 64, got 63"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--steps", "0"], "--steps must be at least 2, got 0"),
        (["--warmup", "-1"], "--warmup must be at least 0, got -1"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--device", "foo"], "--device must be cpu, cuda or cuda:N, got foo"),
        (["--device", "mps"], "--device must be cpu, cuda or cuda:N, got mps"),
        (["--device", "cuda:99"], "--device cuda:99: this torch sees"),
        (["--teacher", "resnet18"], "--teacher and --student go together"),
    ],
)
def test_options_out_of_bounds(options, reason, capsys):
    with pytest.raises(SystemExit) as ended:
        overhead.main(options)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_batch_larger_than_the_data_is_refused(monkeypatch, capsys):
    models = Namespace(list_models=lambda module: ["a", "b"])
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setitem(sys.modules, "torchvision", Namespace(models=models))
    pair = ["--teacher", "a", "--student", "b", "--batch-size", "4000"]
    for options, reason in (
        (pair, "--samples must be at least 4000, got 2048"),
        ([*pair[:3], "c"], "c is no classifier of torchvision"),
    ):
        with pytest.raises(SystemExit):
            overhead.main(options)
        assert reason in capsys.readouterr().err


def test_a_quick_run_writes_a_trial(tmp_path, capsys):
    threads = torch.get_num_threads()
    overhead.main(["--quick", "--out", str(tmp_path)])
    torch.set_num_threads(threads)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"overhead-cpu-trial.{x}" for x in ("json", "txt", "png")
    }
    report = json.loads((tmp_path / "overhead-cpu-trial.json").read_text())
    (pair,) = report["pairs"]
    for arm in ("kcd", "authors", "infobatch"):
        row = pair["arms"][arm]
        assert 0 < row["added_us"] < 1e3 * row["median_ms"], "a part of its own step"
    assert report["recording"]["kcd"]["synchronisations"] == 0
    assert report["recording"]["authors"]["synchronisations"] == 1


@pytest.mark.parametrize("apart", [False, True])
def test_the_device_is_idle_before_a_recording_that_is_timed_apart(monkeypatch, apart):
    events = []
    monkeypatch.setattr(overhead, "sync", lambda device: events.append("sync"))
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, closure=None: events.append("update"))
    loader = [(torch.arange(4), torch.ones(4, 3), torch.arange(4))]
    args, model = Namespace(amp=False, samples=4), nn.Linear(3, 5)
    loop = overhead.Loop("authors", model, model, loader, args, torch.device("cpu"))
    loop.recorder = Namespace(record=lambda *_: events.append("record"))
    whole, added = loop.step(apart=apart)
    assert events == ["sync", "update", *["sync"] * apart, "record", "sync"]
    assert 0 <= added < whole


def test_infobatch_is_charged_what_it_adds():
    """A copy of the weights to the device, a product, a copy of the losses to the host: no second mean, no graph."""
    assert overhead.count("infobatch", steps=4) == {
        "operations": 3.0,
        "synchronisations": 1.0,
        "bytes_to_host": 256.0,
    }
    recorder = overhead.InfoBatch(4, torch.device("cpu"))
    losses = torch.arange(4.0, requires_grad=True)
    recorder.record(torch.tensor([3, 1, 2, 0]), None, losses)
    assert recorder.scores.tolist() == [3, 1, 2, 0]
