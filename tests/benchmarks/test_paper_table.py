"""benchmarks/paper_table.py, with a stub instead of the repositories; and with them, where they are.

KCD_THIRDPARTY=~/checkouts python -m pytest tests/benchmarks/test_paper_table.py    (RepDistiller and SSKD, torchvision, tensorboardX)
"""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import kcd_core as kcd

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import paper_table  # noqa: E402
from _paper import runs as paper_runs  # noqa: E402
from _paper import smoke as paper_smoke  # noqa: E402
from _paper.published import METHODS, PAIRS  # noqa: E402
from _paper.runs import Run, Setting  # noqa: E402

sys.path.remove(str(BENCHMARKS))

# -- what was published ------------------------------------------------------------------------------------

#: arXiv 2207.05409, CIFAR-100: teacher, student, KD, PKT, CRD, SSKD, KC-KD, KC-PKT, KC-CRD, KC-SSKD.
TABLE = """
wrn_40_2   wrn_16_2    75.61 73.26 74.92 74.54 75.64 75.66 75.70 75.01 75.93 76.24
wrn_40_2   wrn_40_1    75.61 73.26 73.54 73.45 74.38 75.27 73.84 74.12 74.60 75.35
resnet56   resnet20    72.34 69.06 70.66 70.34 71.63 70.96 70.75 72.08 72.11 71.31
resnet32x4 resnet8x4   79.42 72.50 73.33 73.64 75.46 75.80 74.05 74.45 75.78 76.48
vgg13      vgg8        74.64 70.36 72.98 72.88 74.29 75.12 73.44 72.82 74.38 74.93
vgg13      MobileNetV2 74.64 64.60 67.37 67.13 69.94 70.92 68.61 67.99 69.90 71.32
ResNet50   MobileNetV2 79.34 64.60 67.35 66.52 69.54 71.14 67.94 67.92 69.82 71.29
ResNet50   vgg8        79.34 70.36 73.81 73.01 74.58 75.72 74.41 73.32 74.49 75.65
resnet32x4 ShuffleV1   79.42 70.50 74.07 74.10 75.12 77.91 74.33 74.60 75.74 78.28
resnet32x4 ShuffleV2   79.42 71.82 74.45 74.69 76.05 78.37 75.19 75.79 76.44 78.59
wrn_40_2   ShuffleV1   75.61 70.50 74.83 73.89 76.27 76.92 75.60 75.78 76.40 77.61
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]

#: RepDistiller's scripts/run_cifar_distill.sh, with the options' defaults in its train_student.py.
TRAIN_STUDENT = {
    "kd": "--distill kd -r 0.1 -a 0.9 -b 0",
    "pkt": "--distill pkt -r 1 -a 0 -b 30000",
    "crd": "--distill crd -r 1 -a 1 -b 0.8",
}
TRAIN_STUDENT_DEFAULTS = {
    "--epochs": "240", "--batch_size": "64", "--lr_decay_epochs": "150,180,210", "-r": "1", "--lr_decay_rate": "0.1",
    "--weight_decay": "5e-4", "--momentum": "0.9", "--kd_T": "4", "--nce_k": "16384", "--nce_t": "0.07", "--nce_m": "0.5",
    "--feat_dim": "128", "--mode": "exact",
}  # fmt: skip
#: SSKD's command.sh, with the defaults in its student.py.
STUDENT = """
--t-path ./experiments/teacher_wrn_40_2_seed0/   --s-arch wrn_16_2     --lr 0.05
--t-path ./experiments/teacher_wrn_40_2_seed0/   --s-arch wrn_40_1     --lr 0.05
--t-path ./experiments/teacher_resnet56_seed0/   --s-arch resnet20     --lr 0.05
--t-path ./experiments/teacher_resnet32x4_seed0/ --s-arch resnet8x4    --lr 0.05
--t-path ./experiments/teacher_vgg13_seed0/      --s-arch vgg8         --lr 0.05
--t-path ./experiments/teacher_vgg13_seed0/      --s-arch MobileNetV2  --lr 0.01
--t-path ./experiments/teacher_ResNet50_seed0/   --s-arch MobileNetV2  --lr 0.01
--t-path ./experiments/teacher_ResNet50_seed0/   --s-arch vgg8         --lr 0.05
--t-path ./experiments/teacher_resnet32x4_seed0/ --s-arch ShuffleV1    --lr 0.01
--t-path ./experiments/teacher_resnet32x4_seed0/ --s-arch ShuffleV2    --lr 0.01
--t-path ./experiments/teacher_wrn_40_2_seed0/   --s-arch ShuffleV1    --lr 0.01
"""
STUDENT_DEFAULTS = {
    "--epoch": "240", "--t-epoch": "60", "--batch-size": "64", "--milestones": "150 180 210", "--t-milestones": "30 45",
    "--t-lr": "0.05", "--momentum": "0.9", "--weight-decay": "5e-4", "--gamma": "0.1", "--ce-weight": "0.1",
    "--kd-weight": "0.9", "--tf-weight": "2.7", "--ss-weight": "10.0", "--kd-T": "4.0", "--tf-T": "4.0", "--ss-T": "0.5",
    "--ratio-tf": "1.0", "--ratio-ss": "0.75",
}  # fmt: skip
#: kcd run's options: the paper's for KC-, and everything kept for the others.
KCD = {True: "--ratio 0.7 --stages 6 --period 40", False: "--ratio 1 --stages 1 --period 240"}


def options(words):
    """A command line's options by name, with all values of one that has several."""
    found = {}
    for word in words:
        if word.startswith("-"):
            name = word
            found[name] = ""
        else:
            found[name] = f"{found[name]} {word}".strip()
    return found


def test_the_published_figures_are_those_of_the_paper():
    assert len(PAIRS) == 11
    for row, pair in zip(ROWS, PAIRS.values(), strict=True):
        accuracies = [pair.teacher_accuracy, pair.student_accuracy, *(pair.published[m] for m in METHODS)]
        assert [pair.teacher, pair.student, *(f"{x:.2f}" for x in accuracies)] == row


@pytest.fixture
def setting(tmp_path):
    return Setting(*(tmp_path / name for name in ("R", "S", "data", "models", "out")))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", range(11))
def test_a_run_has_the_published_settings(setting, place, method):
    teacher, student, *_ = ROWS[place]
    seed = place % 3
    words = paper_runs.command(Run(method, f"{teacher}-{student}", seed), setting, "5")
    own, base = words.index("run"), method.replace("kc-", "")
    assert words[: own + 1] == [
        sys.executable,
        str(BENCHMARKS / "_paper" / "host.py"),
        "--seed",
        f"{seed}",
        "run",
    ]
    script = next(word for word in words[own:] if word.endswith(".py"))
    place_of_script = words.index(script)
    kcd_options = options(words[own + 1 : place_of_script])
    assert kcd_options.pop("--history") == "history.json"
    assert kcd_options == options(KCD[method.startswith("kc-")].split())
    given = options(words[place_of_script + 1 :])
    if base == "sskd":
        assert Path(script) == setting.sskd / "student.py"
        wanted = options(STUDENT.strip().splitlines()[place].split())
        assert Path(given.pop("--t-path")).name == Path(wanted.pop("--t-path")).name
        assert (given.pop("--seed"), given.pop("--gpu-id")) == (f"{seed}", "5")
        defaults = STUDENT_DEFAULTS
    else:
        assert Path(script) == setting.repdistiller / "train_student.py"
        wanted = {"--model_s": student, **options(TRAIN_STUDENT[base].split())}
        assert Path(given.pop("--path_t")) == setting.teachers / f"{teacher}_vanilla" / "ckpt_epoch_240.pth"
        assert given.pop("--trial") == f"{seed}"
        assert given.pop("--save_freq") == "240"
        given.pop("--num_workers")
        defaults = TRAIN_STUDENT_DEFAULTS
    assert {**defaults, **given} == {**defaults, **wanted}


def test_fewer_epochs_scale_all_that_counts_in_epochs(setting):
    from dataclasses import replace

    short = replace(setting, epochs=24)
    words = paper_runs.command(Run("kc-sskd", "vgg13-vgg8", 0), short, None)
    given = options(words[words.index("run") + 1 :])
    names = ("--period", "--epoch", "--milestones", "--t-epoch", "--t-milestones")
    assert [given[name] for name in names] == ["4", "24", "15 18 21", "6", "3 4"]
    words = paper_runs.command(Run("kc-kd", "vgg13-vgg8", 0), short, None)
    assert options(words[words.index("run") + 1 :])["--lr_decay_epochs"] == "15,18,21"


@pytest.mark.parametrize(("samples", "epochs"), [(50000, 240), (50000, 12), (100, 6), (203, 12)])
def test_samples_are_checked_against_the_schedule(samples, epochs):
    schedule = kcd.CondensationSchedule(0.7, stages=6, period=epochs // 6)
    sizes = [schedule.size(samples, epoch) for epoch in range(1, epochs + 1)]
    assert paper_runs.to_draw(Run("kc-kd", "vgg13-vgg8", 0), samples, epochs) == sum(sizes)
    assert paper_runs.to_draw(Run("kd", "vgg13-vgg8", 0), samples, epochs) == samples * epochs


def test_the_published_schedule_draws_seven_eighths_of_the_samples():
    assert paper_runs.to_draw(Run("kc-kd", "vgg13-vgg8", 0), 50000, 240) == 10_500_000


def test_accuracies_are_read_as_the_repositories_print_them():
    log = """teacher cls_acc:76.46

teacher_train_Epoch:001/060\t run_time:9.1\t ssp_loss:3.9\t ssp_acc:1.33\t
ssp_test_Epoch:001/060\t run_time:2.31\t ssp_loss:3.465\t ssp_acc:3.12\t

student_train_Epoch:001/240\t run_time:9.7\t ce_loss:4.794\t kd_loss:2.973\t cls_acc:1.00
student_test_Epoch:001/240\t run_time:1.49\t cls_acc:9.12

student_test_Epoch:002/240\t run_time:1.49\t cls_acc:8.50
"""
    assert paper_runs.accuracies(Run("kc-sskd", "vgg13-vgg8", 0), log) == (76.46, [9.12, 8.5])
    log = """Test: [0/313]\tTime 0.1 (0.1)\tLoss 1.0 (1.0)\tAcc@1 70.000 (70.000)\tAcc@5 90.0 (90.0)
 * Acc@1 74.640 Acc@5 92.590
teacher accuracy:  tensor(74.6400)
==> training...
 * Acc@1 10.000 Acc@5 30.000
epoch 1, total time 8.20
 * Acc@1 11.250 Acc@5 31.000
saving the best model!
"""
    run = Run("kc-crd", "vgg13-vgg8", 0)
    assert paper_runs.accuracies(run, log) == (74.64, [11.25])
    assert paper_runs.epochs_done(run, log) == 1


# -- runs, with a stub instead of _paper/host.py --------------------------------------------------------

STUB = r"""
import json, os, pickle, sys, time
words = sys.argv[1:]
def value(name): return words[words.index(name) + 1]
kept, seed = float(value("--ratio")), int(value("--seed"))
method = value("--distill") if "--distill" in words else "sskd"
name = ("kc-" if kept < 1 else "") + method
with open("data/behaviour.json") as file:
    behaviour = json.load(file).get(name, "")
epochs = int(value("--epochs" if "--epochs" in words else "--epoch"))
with open("data/cifar-100-python/train", "rb") as file:
    n = len(pickle.load(file)["data"])
print("GPU", os.environ.get("CUDA_VISIBLE_DEVICES"))
if behaviour == "hang":
    open("hangs", "w").write(str(os.getpid()))
    time.sleep(600)
if behaviour == "fail":
    sys.exit("out of memory, say")
if method == "sskd":
    print("teacher cls_acc:60.00")
else:
    print(" * Acc@1 60.000 Acc@5 90.000")
accuracy = 50 + seed + (2 if kept < 1 else 0)
for epoch in range(1, epochs + 1 - (behaviour == "short")):
    test = accuracy if epoch == epochs else accuracy + 0.5 if epoch == 2 else 1
    if method == "sskd":
        print(f"student_test_Epoch:{epoch:03d}/{epochs:03d}\t run_time:1.00\t cls_acc:{test:.2f}\n")
    else:
        print(f" * Acc@1 99.000 Acc@5 99.000\nepoch {epoch}, total time 1.00\n * Acc@1 {test:.3f} Acc@5 99.000")
drawn = n * epochs - (0 if kept == 1 or behaviour == "all" else sum(s * (n // 20) for s in range(6)) * epochs // 6)
with open("history.json", "w") as file:
    summary = {"epochs": epochs, "drawn": drawn, "observed": drawn, "saved": 0}
    json.dump({"summary": summary, "history": {"num_samples": n}}, file)
"""
N = 40


class Place:
    """A folder with all that ``--smoke`` needs, and the command line that uses it."""

    def __init__(self, folder):
        self.folder, self.out = folder, folder / "out"
        self.runs = self.out / f"paper-table-smoke-{N}x6"
        marks = {
            "R": (
                "train_student.py",
                "helper/loops.py",
                "helper/pretrain.py",
                "crd/criterion.py",
                "dataset/cifar100.py",
            ),
            "S": ("student.py", "wrapper.py", "cifar.py", "utils.py", "teacher.py"),
        }
        for root, files in marks.items():
            for name in files:
                (folder / root / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / root / name).write_text("")
        for teacher in ("vgg13", "resnet56"):
            path = paper_smoke.checkpoint(folder / "smoke" / "models", teacher)
            path.parent.mkdir(parents=True)
            torch.save({"model": {"weight": torch.arange(3)}}, path)
        (folder / "smoke" / f"data-{N}").mkdir()
        (folder / "stub.py").write_text(STUB)
        self.behave()
        self.command = [
            *(
                "--repdistiller",
                str(folder / "R"),
                "--sskd",
                str(folder / "S"),
                "--smoke",
                str(folder / "smoke"),
            ),
            *("--smoke-samples", f"{N}", "--out", str(self.out), "--jobs", "2", "--pairs", "vgg13-vgg8"),
        ]

    def behave(self, **behaviour):
        text = json.dumps({name.replace("_", "-"): how for name, how in behaviour.items()})
        (self.folder / "smoke" / f"data-{N}" / "behaviour.json").write_text(text)

    def results(self):
        return {path.parent.name: json.loads(path.read_text()) for path in self.runs.glob("*/result.json")}

    def table(self):
        return json.loads(self.runs.with_name(f"{self.runs.name}.json").read_text())


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(paper_runs, "HOST", tmp_path / "stub.py")
    monkeypatch.setattr(paper_table, "installed", lambda module: True)
    monkeypatch.setattr(
        paper_table, "made_by", lambda *_: {"command": "python …", "date": "today", "torch": "2"}
    )
    return Place(tmp_path)


def test_failures_are_kept_reported_and_tried_again_and_nothing_else_is(place, capsys):
    place.behave(pkt="fail", kc_crd="short", kc_kd="all")
    assert paper_table.main(place.command) == 1
    names = {f"{method}-vgg13-vgg8-0" for method in METHODS}
    failed = {f"{method}-vgg13-vgg8-0" for method in ("pkt", "kc-crd", "kc-kd")}
    assert set(place.results()) == names - failed
    failures = {f"{f['method']}-{f['pair']}-{f['seed']}": f for f in place.table()["failures"]}
    assert set(failures) == failed
    assert failures["pkt-vgg13-vgg8-0"]["why"] == "it ended with status 1"
    assert failures["pkt-vgg13-vgg8-0"]["tail"][-1] == "out of memory, say"
    assert "5 test accuracies" in failures["kc-crd-vgg13-vgg8-0"]["why"]
    assert "drew 240 samples" in failures["kc-kd-vgg13-vgg8-0"]["why"]  # where 210 are due
    assert "the schedule says 210" in failures["kc-kd-vgg13-vgg8-0"]["why"]
    assert "out of memory, say" in (place.runs / "pkt-vgg13-vgg8-0" / "log.txt").read_text()
    printed = capsys.readouterr().out
    assert printed.count("FAILED") == 3
    assert "3 runs failed:" in printed

    before = {name: (place.runs / name / "result.json").stat().st_mtime_ns for name in names - failed}
    place.behave()
    assert paper_table.main(place.command) == 0
    assert set(place.results()) == names
    assert {name: (place.runs / name / "result.json").stat().st_mtime_ns for name in before} == before
    assert place.table()["failures"] == []
    assert "8 runs, 5 of them done before" in capsys.readouterr().out


def test_the_report_has_the_figures_of_the_runs(place):
    assert paper_table.main([*place.command, "--seeds", "3"]) == 0
    rows = {row["method"]: row for row in place.table()["table"]}
    assert len(rows) == 8
    for method, row in rows.items():
        mean = 53 if method.startswith("kc-") else 51  # of 50, 51, 52, with KCD two more
        assert (row["seeds"], row["accuracy"], row["deviation"], row["best"]) == (3, mean, 1, mean + 0.5)
        published = float(ROWS[4][4 + METHODS.index(method)])
        assert row["difference"] == pytest.approx(mean - published)
        assert (row["drawn"], row["share"]) == ((210, 0.875) if method.startswith("kc-") else (240, 1))
        assert row["gain"] == (2 if method.startswith("kc-") else None)
    assert rows["kc-pkt"]["published_gain"] == pytest.approx(72.82 - 72.88)
    assert place.table()["teachers"] == {"vgg13": {"published": 74.64, "here": [60]}}
    text, page = (place.runs.with_name(f"{place.runs.name}.{end}").read_text() for end in ("txt", "md"))
    (line,) = [line for line in text.splitlines() if "KC-SSKD  " in line]
    assert line.split()[4:9] == ["3", "74.93", "53.00", "±", "1.00"]
    assert "24 runs of 6 epochs on 40 images, 24 of which drew exactly" in text
    assert "| V13 → V8 | 51.00 (-21.98) | 51.00 (-21.88) |" in page
    assert text.splitlines()[2].startswith("SMOKE RUN.")
    assert "\nSMOKE RUN." in page


def test_gains_are_of_seeds_that_both_have(place):
    assert paper_table.main([*place.command, "--methods", "pkt"]) == 0
    assert paper_table.main([*place.command, "--methods", "kc-pkt", "--seeds", "3"]) == 0
    pkt, kc_pkt = place.table()["table"]
    assert (pkt["accuracy"], kc_pkt["accuracy"], kc_pkt["gain"]) == (50, 53, 2)


def test_why_there_is_no_gain_is_said(place, capsys):
    assert paper_table.main([*place.command, "--methods", "kc-pkt"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1 run, 0 of them")
    (line,) = [line for line in printed.splitlines() if "KC-PKT  " in line]
    assert "-0.06  no PKT run  " in line
    assert "\n1 run of 6 epochs on 40 images, 1 of which drew" in printed


def test_a_table_is_not_replaced_by_one_with_fewer_runs(place):
    assert paper_table.main([*place.command, "--methods", "kd", "pkt"]) == 0
    before = place.table()
    (place.runs / "pkt-vgg13-vgg8-0" / "result.json").unlink()
    assert paper_table.main([*place.command, "--report-only"]) == 0
    assert place.table() == before
    trial = json.loads((place.out / f"{place.runs.name}-trial.json").read_text())
    assert [run["method"] for run in trial["runs"]] == ["kd"]
    text, page = (place.out / f"{place.runs.name}-trial.{end}" for end in ("txt", "md"))
    assert text.read_text().startswith(f"{place.runs.name}-trial\n")
    assert page.read_text().startswith(f"# {place.runs.name}-trial\n")


def test_the_table_is_recomputed_without_the_runs(place, capsys):
    assert paper_table.main(place.command) == 0
    capsys.readouterr()
    first = place.table()
    for path in place.runs.glob("*/*.json"):
        path.unlink()
    assert paper_table.main([*place.command, "--report-only"]) == 0
    assert place.table() == first
    assert "8 runs of 6 epochs" in capsys.readouterr().out


def interrupted(place, number):
    """Run kd, crd and pkt, of which crd never ends, in a process that gets a signal when the others are done."""
    place.behave(crd="hang")
    code = (
        "import sys; sys.path[0] = sys.argv[1]; import _paper.runs, paper_table; from pathlib import Path\n"
        "_paper.runs.HOST = Path(sys.argv[2])\n"
        "paper_table.installed = lambda module: True; paper_table.made_by = lambda *_: {}\n"
        "sys.exit(paper_table.main(sys.argv[3:]))"
    )
    command = [*place.command, "--methods", "kd", "crd", "pkt"]
    words = [sys.executable, "-c", code, str(BENCHMARKS), str(place.folder / "stub.py"), *command]
    running = subprocess.Popen(words)
    hangs = place.runs / "crd-vgg13-vgg8-0" / "hangs"
    while not (hangs.exists() and hangs.read_text() and len(place.results()) == 2):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(number)
    assert set(place.results()) == {"kd-vgg13-vgg8-0", "pkt-vgg13-vgg8-0"}
    place.behave()
    return running.wait(), int(hangs.read_text()), command


def test_interrupted_runs_leave_no_process_and_start_over(place):
    status, process, command = interrupted(place, signal.SIGTERM)
    assert status == 130
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert place.table()["failures"] == []
    assert paper_table.main(command) == 0
    assert not (place.runs / "crd-vgg13-vgg8-0" / "hangs").exists(), "what the interrupted run left is gone"
    assert len(place.results()) == 3


def test_runs_that_outlived_a_killed_call_are_not_run_over(place, capsys):
    _, process, command = interrupted(place, signal.SIGKILL)
    assert paper_table.main(command) == 2
    assert "still running in" in capsys.readouterr().err
    os.kill(process, signal.SIGKILL)
    while paper_table.main(command) == 2:
        time.sleep(0.05)
    assert len(place.results()) == 3


def test_runs_take_the_gpus_in_turns(place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert paper_table.slots_of(paper_table.parse(["--jobs", "2"])) == ["4", "5", "7"] * 2
    assert paper_table.slots_of(paper_table.parse(["--gpus", "7", "--jobs", "2"])) == ["7", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert paper_table.slots_of(paper_table.parse([])) == ["0", "1", "2"]
    assert paper_table.main([*place.command, "--gpus", "2", "--methods", "sskd", "kd"]) == 0
    for method in ("sskd", "kd"):
        log = (place.runs / f"{method}-vgg13-vgg8-0" / "log.txt").read_text()
        assert "\nGPU 2\n" in log
        assert method == "kd" or "--gpu-id 2" in log  # it overwrites CUDA_VISIBLE_DEVICES with it


def test_gpus_that_are_not_there_are_said(place, monkeypatch, capsys):
    assert paper_table.main([*place.command, "--gpus", "0"]) == 2
    assert "--gpus: torch does not see 0; it sees none" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert paper_table.main([*place.command, "--gpus", "1", "2", "MIG-1f2e"]) == 2
    assert "--gpus: torch does not see 2; it sees 0, 1" in capsys.readouterr().err
    assert not place.runs.exists()


# -- what is needed ----------------------------------------------------------------------------------------


class Code:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_all_that_is_missing_is_said_before_anything_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(paper_table, "installed", lambda module: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    folder = tmp_path / "CIFAR" / "cifar-100-python"
    folder.mkdir(parents=True)
    (folder / "test").write_bytes(b"not it")
    broken = paper_smoke.checkpoint(tmp_path / "R/save/models", "vgg13")
    broken.parent.mkdir(parents=True)
    torch.save({"model": Code(tmp_path / "executed")}, broken)
    command = [
        "--repdistiller",
        "R",
        "--sskd",
        "S",
        "--data",
        "CIFAR",
        "--pairs",
        "vgg13-vgg8",
        "resnet56-resnet20",
    ]
    monkeypatch.chdir(tmp_path)
    assert paper_table.main(command) == 2
    said = capsys.readouterr().err
    for part in (
        f"--repdistiller: {tmp_path / 'R'} is no checkout of RepDistiller; git clone",
        f"--sskd: {tmp_path / 'S'} is no checkout of SSKD; git clone",
        "torchvision is not installed",
        "tensorboardX is not installed",
        "no CUDA device",
        f"{folder} lacks train, meta; unpack",
        f"{tmp_path}/R/save/models/resnet56_vanilla/ckpt_epoch_240.pth is not there; in RepDistiller",
        f"{broken} can't be read",
    ):
        assert part in said
    assert not (tmp_path / "executed").exists(), "a teacher's file is data"

    for name in ("train", "meta"):
        (folder / name).write_bytes(b"nor this")
    command += ["--methods", "sskd", "--sskd-teachers", "T"]
    assert paper_table.main(command) == 2
    said = capsys.readouterr().err
    assert "RepDistiller;" not in said
    assert all(f"{folder / name} is not CIFAR-100's" in said for name in ("train", "test", "meta"))
    assert f"{tmp_path}/T/teacher_vgg13_seed0/ckpt/best.pth is not there; SSKD's README" in said


def test_sskd_gets_repdistillers_teachers_in_its_own_format(place):
    assert paper_table.main([*place.command, "--methods", "kc-sskd"]) == 0
    path = place.runs / "sskd-teachers" / "teacher_vgg13_seed0" / "ckpt" / "best.pth"
    assert torch.load(path, weights_only=True)["state_dict"]["weight"].tolist() == [0, 1, 2]
    assert f"--t-path {path.parents[1]} " in (place.runs / "kc-sskd-vgg13-vgg8-0" / "log.txt").read_text()


@pytest.mark.parametrize(
    "options", ["--epochs 7", "--epochs 0", "--seeds 0", "--jobs 0", "--smoke-samples 3", "--pairs x"]
)
def test_options_that_make_no_sense_are_refused(options, capsys):
    with pytest.raises(SystemExit):
        paper_table.parse(shlex.split(options))
    assert options.split()[0] in capsys.readouterr().err


def test_a_run_is_seeded(tmp_path):
    script = "import random, numpy, torch; print('drawn', torch.rand(1).item(), numpy.random.rand(), random.random())"
    for name in ("student.py", "wrapper.py", "cifar.py", "utils.py", "teacher.py"):
        (tmp_path / name).write_text(script if name == "student.py" else "")

    words = [
        sys.executable,
        str(BENCHMARKS / "_paper" / "host.py"),
        "--seed",
        "2",
        "run",
        str(tmp_path / "student.py"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    (drawn,) = [line for line in done.stdout.splitlines() if line.startswith("drawn")]
    torch.manual_seed(2)
    wanted = torch.rand(1).item(), np.random.RandomState(2).rand(), random.Random(2).random()
    assert drawn == " ".join(map(str, ("drawn", *wanted)))


# -- the real ones -----------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not os.environ.get("KCD_THIRDPARTY"), reason="KCD_THIRDPARTY names no folder with checkouts"
)
def test_every_method_runs_on_the_real_repositories(tmp_path):
    pytest.importorskip("torchvision")
    pytest.importorskip("tensorboardX")
    checkouts = Path(os.environ["KCD_THIRDPARTY"])
    command = [
        *(
            "--repdistiller",
            str(checkouts / "RepDistiller"),
            "--sskd",
            str(checkouts / "SSKD"),
            "--workers",
            "1",
        ),
        *(
            "--smoke",
            str(tmp_path / "smoke"),
            "--out",
            str(tmp_path),
            "--pairs",
            "resnet56-resnet20",
            "--jobs",
            "2",
        ),
    ]
    assert paper_table.main(command) == 0
    found = json.loads((tmp_path / "paper-table-smoke-100x6.json").read_text())
    drawn = {run["method"]: run["drawn"] for run in found["runs"]}
    assert drawn == {method: 525 if method.startswith("kc-") else 600 for method in METHODS}
    assert found["failures"] == []
