"""``kcd run`` on miniature hosts, end to end, each in a process of its own.

The hosts (``miniatures/``) record what they drew and predicted, and know nothing of kcd. What should have been
drawn is worked out from that record with the reference of the method: index by index, pixel by pixel.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from helpers import SECONDS

import kcd_core as kcd

pytest.importorskip("torch")

HOSTS = Path(__file__).parents[1] / "miniatures"
N = 98
ONCE = ("--ratio", "0.5", "--stages", "2", "--period", "1")
SIZES = [98, 74, 50, 49, 49, 49]  # the last leaves a single sample over, in batches of 16
Items = list[dict[str, Any]]


class Host:
    """A copy of a miniature host, to run commands in."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder / name
        shutil.copytree(HOSTS / name, self.folder)
        if name == "reviewkd":  # started in the root here: paths mean what they mean to python
            for output in ("logs", "checkpoints"):
                (self.folder / output).mkdir()
        self.runs = 0

    def run(
        self, *command: str, rank: int = 0, ok: bool = True, status: int | None = None, old: bool = False
    ) -> tuple[str, Items]:
        """What a python command printed, and what the host recorded."""
        self.runs += 1
        record = self.folder / f"record{self.runs}"
        paths = [str(HOSTS / "shared"), *([str(HOSTS / "old")] if old else [])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MINI_RECORD": str(record)}
        if old:
            env["MINI_OLD"] = "1"
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        output = done.stdout + done.stderr
        if status is not None:
            assert done.returncode == status, output
        else:
            assert (done.returncode == 0) == ok, output
        items: Items = []
        for path in sorted(self.folder.glob(f"{record.name}.{rank}")):
            items = list(np.load(path, allow_pickle=True))
        return output, items

    def kcd(self, *arguments: str, **options: Any) -> tuple[str, Items]:
        return self.run("-m", "kcd_adapters", "run", *arguments, **options)


@pytest.fixture
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Host:
    return Host(request.param, tmp_path)


def on(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("host", [name], indirect=True)


def images() -> dict[int, Any]:
    data = np.random.default_rng(0).integers(0, 256, (N, 4, 4, 3), dtype=np.uint8)
    return dict(enumerate(data))


def indices(items: Items) -> list[int]:
    return [i for item in items for i in item["index"]]


def check(
    items: Items, sizes: list[int], *, mixing: str = "cumulative", period: int = 1, ranks: int = 1
) -> None:
    """Whether the student's epochs drew, and mixed, what follows from their own predictions."""
    train = [item for item in items if item["phase"] == "train"]
    record = -np.ones((N, len(sizes)))
    kept, expected = list(range(N)), images()
    for epoch, size in enumerate(sizes, 1):
        batches = [item for item in train if item["epoch"] == epoch]
        drawn = indices(batches)
        assert len(kept) == size
        assert sorted(set(drawn)) == sorted(kept)
        if ranks == 1:
            assert len(drawn) == size
        for item in batches:
            assert len(item["index"]) > 1
            for i, image in zip(item["index"], item["image"], strict=True):
                np.testing.assert_array_equal(image, expected[i])
            if item["logits"] is not None:
                padded = item.get("padded", 0)
                for i, logits in list(zip(item["index"], item["logits"], strict=True))[: len(drawn) - padded]:
                    record[i, epoch - 1] = reference.entropy(logits)
        if reference.due(epoch, period, 0):
            value, count = reference.recorded(record)
            target = (sizes + sizes[-1:])[epoch]
            stage = reference.condense(value, count, previous=len(kept), target=target)
            base = {"cumulative": expected, "fresh": images(), "none": images()}[mixing]
            kept = stage.kept
            expected = base
            if mixing != "none":
                # In float32: the last bit of a weight can show in a pixel, which is truncated.
                left = np.float32(len(stage.tail)) - np.arange(len(stage.tail), dtype=np.float32)
                weights = np.float32(0.3) * (left / np.float32(max(1, len(left)))) + np.float32(0.7)
                expected = reference.mix(base, stage.tail, stage.dropped, weights)
    assert len({item["epoch"] for item in train}) == len(sizes)


def phase(items: Items, name: str) -> Items:
    return [item for item in items if item["phase"] == name]


# -- RepDistiller --------------------------------------------------------------------------------------


@on("repdistiller")
def test_what_is_drawn_and_mixed_follows_from_the_predictions(host: Host) -> None:
    asked = ("--history", "h.json", "--log", "l.jsonl")
    output, items = host.kcd(*ONCE, *asked, "train_student.py", "--num_workers", "2")
    check(items, SIZES)
    assert "RepDistiller, kd" in output
    assert "observed at helper.loops.accuracy" in output
    assert "shim tensorboard_logger" in output
    assert "stage 1 after epoch 1: 74 of 98 kept, 24 dropped, 24 mixed" in output
    assert "borrows a sample" in output
    assert f"{sum(SIZES)} samples drawn, {sum(SIZES)} of them observed" in output
    written = json.loads((host.folder / "h.json").read_text())
    assert [r["kept"] for r in written["history"]["records"]] == [*SIZES[1:]]
    assert written["summary"]["epochs"] == 6
    assert written["summary"]["full"] - written["summary"]["saved"] == sum(SIZES)
    assert written["run"]["command"] == "train_student.py --num_workers 2"
    lines = [json.loads(line) for line in (host.folder / "l.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["kept"]) for line in lines] == list(enumerate(SIZES[1:], 1))
    assert {line["started"] for line in lines} == {written["run"]["started"]}
    labels = np.random.default_rng(1).integers(0, 5, N)
    for stage in written["classes"]:  # against what the epoch after it drew
        kept = indices([item for item in phase(items, "train") if item["epoch"] == stage["epoch"] + 1])
        for label, share in enumerate(stage["shares"]):
            assert share == pytest.approx(np.sum(labels[kept] == label) / np.sum(labels == label), abs=1e-6)
    assert [stage["stage"] for stage in written["classes"]] == [1, 2, 3, 4, 5]
    # and the check itself: what would random dropping look like?
    rng = np.random.default_rng(0)
    for item in phase(items, "train"):
        if item["epoch"] == 2:
            item["index"] = rng.permutation(N)[: len(item["index"])].tolist()
    with pytest.raises(AssertionError):
        check(items, SIZES)


@on("repdistiller")
def test_mixing_from_the_originals(host: Host) -> None:
    script = ("train_student.py", "--epochs", "4")
    check(host.kcd(*ONCE, "--mixing", "fresh", *script)[1], SIZES[:4], mixing="fresh")


@on("repdistiller")
def test_mixed_images_are_made_once_a_stage(host: Host) -> None:
    script = ("train_student.py", "--epochs", "4")
    check(host.kcd(*ONCE, "--mixing-cache", "1 MB", *script)[1], SIZES[:4])
    output, _ = host.kcd(*ONCE, "--mixing-cache", "9", *script, ok=False)
    assert "mixing_cache would not be used: it has room for no image" in output
    assert "leave out --mixing-cache" in output


@on("repdistiller")
def test_a_phase_without_predictions_sees_everything_and_counts_no_epoch(host: Host) -> None:
    _, items = host.kcd(*ONCE, "train_student.py", "--distill", "abound", "--epochs", "3")
    for epoch in (1, 2):
        init = [item for item in phase(items, "init") if item["epoch"] == epoch]
        assert sorted(indices(init)) == list(range(N))
    check(items, SIZES[:3])


@on("repdistiller")
@pytest.mark.parametrize("negatives", ["kept", "full"])
def test_crd_contrasts_with_the_condensed_set(host: Host, negatives: str) -> None:
    output, items = host.kcd(
        *ONCE,
        "--negatives",
        negatives,
        "train_student.py",
        "--distill",
        "crd",
        "--mode",
        "relax",
        "--num_workers",
        "1",
    )
    for shim in ("train_data", "alias_cuda", "ragged_lists"):
        assert output.count(f"shim {shim}") == 1
    check(items, SIZES)
    labels = np.random.default_rng(1).integers(0, 5, N)
    outside = 0
    for item in phase(items, "train"):
        kept = set(indices([other for other in phase(items, "train") if other["epoch"] == item["epoch"]]))
        for i, (positive, *negative) in zip(item["index"], item["contrast"], strict=True):
            assert labels[positive] == labels[i]
            assert (labels[negative] != labels[i]).all()
            outside += len({positive, *negative} - kept)
    assert (outside > 0) == (negatives == "full")


@on("repdistiller")
@pytest.mark.parametrize(("method", "workers"), [("kd", 0), ("crd", 2)])
def test_with_everything_kept_the_weights_are_those_of_the_plain_run(
    host: Host, method: str, workers: int
) -> None:
    script = ("train_student.py", "--distill", method, "--num_workers", str(workers), "--epochs", "3")
    # Plain, the host gets from `old/` what the shims give it otherwise.
    (plain,) = phase(host.run(*script, old=True)[1], "weights")
    (mine,) = phase(host.kcd("--ratio", "1", "--stages", "1", "--period", "1", *script)[1], "weights")
    for name, weight in plain["state"].items():
        assert weight.tobytes() == mine["state"][name].tobytes()


@on("repdistiller")
@pytest.mark.parametrize("anew", ["loader", "data"])
def test_a_loader_that_is_made_anew_for_every_epoch_is_followed(host: Host, anew: str) -> None:
    output, items = host.kcd(*ONCE, "train_student.py", "--anew", anew)
    check(items, SIZES)
    assert "WARNING" not in output


@on("repdistiller")
def test_loaders_that_can_not_be_followed_are_not_passed_over_in_silence(host: Host) -> None:
    output, items = host.kcd(*ONCE, "train_student.py", "--anew", "beside", "--epochs", "2")
    assert [len(set(indices([i for i in items if i.get("epoch") == e]))) for e in (1, 2)] == [N, N]
    assert (
        output.count("WARNING: training continues over another loader than the one that was recognised") == 1
    )


@on("repdistiller")
@pytest.mark.parametrize(
    ("accuracy", "reason"),
    [
        ("soft", "the labels have shape [16, 5], [B] expected, for predictions of [16, 5] (7 x)"),
        ("never", "helper.loops.accuracy was never called"),
    ],
)
def test_a_run_in_which_nothing_is_observed_says_why(host: Host, accuracy: str, reason: str) -> None:
    output, _ = host.kcd(*ONCE, "train_student.py", "--epochs", "1", "--accuracy", accuracy, status=3)
    early, _, late = output.partition("WARNING: this run was without KCD")
    assert "nothing was observed in a whole pass over CIFAR100Instance, 98 samples" in early
    assert reason in early
    assert "helper.loops.accuracy was called" in late  # by the validation, too
    assert "without a gradient" in late


@on("repdistiller")
def test_a_schedule_that_never_condenses_is_told(host: Host) -> None:
    output, _ = host.kcd("train_student.py", "--epochs", "1")
    assert "kcd: ratio 0.7 in 6 stages of 40 epochs, value entropy, mixing auto" in output
    early, _, late = output.partition("the student trains on")
    assert "WARNING: with 1 epoch this will be plain training: the first stage ends after epoch 40" in early
    assert "1 epoch, 0 stages, 98 samples drawn" in late
    assert "Lower kcd's --period\n" in early
    assert "no stage ended: --period 40 is longer than the 1 epoch; this was plain training" in output


@on("repdistiller")
def test_the_period_is_chosen_by_the_scripts_epochs(host: Host) -> None:
    schedule = kcd.CondensationSchedule.for_epochs(5, 0.3, stages=3)
    assert schedule.period == 1
    given = ("--ratio", "0.3", "--mixing", "none", "--stages", "3", "--period", "auto")
    output, _ = host.kcd(*given, "train_student.py", "--epochs", "5")
    assert "kcd: ratio 0.3 in 3 stages of 1 epoch, value entropy, mixing none" in output
    assert "kcd: --period auto: 1 epoch a stage, for 5 epochs" in output
    assert f"5 epochs, 4 stages, {sum(schedule.sizes(98, 5))} samples drawn" in output


@on("repdistiller")
def test_a_period_that_is_too_long_is_told_with_the_one_to_take(host: Host) -> None:
    output, _ = host.kcd("--stages", "1", "train_student.py", "--epochs", "3")
    assert f"--period auto would choose {kcd.CondensationSchedule.for_epochs(3, stages=1).period}\n" in output


@on("repdistiller")
def test_a_run_as_short_as_its_stages_has_no_period_to_choose(host: Host) -> None:
    output, items = host.kcd("--period", "auto", "train_student.py", "--epochs", "6", status=2)
    assert "--period auto needs more than 6 epochs" in output
    assert "the script trains for 6" in output
    assert not items


@on("repdistiller")
def test_a_host_that_crashes_is_not_reproached(host: Host) -> None:
    output, _ = host.kcd(*ONCE, "train_student.py", "--batch_size", "0", status=1)
    assert "batch_size should be a positive integer" in output
    assert "without KCD" not in output


@on("repdistiller")
def test_a_history_that_can_not_be_written_is_refused_before_training(host: Host) -> None:
    for path, reason in (("no/h.json", "No such file"), ("helper", "not a regular file")):
        output, items = host.kcd(*ONCE, "--history", path, "train_student.py", status=2)
        assert f"kcd: --history {path}: {reason}" in output
        assert len(output.splitlines()) == 1
        assert not items


@on("repdistiller")
def test_shims_can_be_left_out(host: Host) -> None:
    output, _ = host.kcd("--no-shim", "tensorboard_logger", "train_student.py", ok=False)
    assert "No module named 'tensorboard_logger'" in output
    output, _ = host.kcd("--no-shim", "tensorbord", "train_student.py", ok=False)
    assert "there is no shim 'tensorbord'" in output


# -- the others ----------------------------------------------------------------------------------------


@on("sskd")
def test_sskd_rotations_and_the_teachers_head(host: Host) -> None:
    output, items = host.kcd("--ratio", "0.5", "--stages", "2", "--period", "2", "student.py", "--epoch", "5")
    for epoch in (1, 2):
        head = [item for item in phase(items, "head") if item["epoch"] == epoch]
        assert sorted(indices(head)) == list(range(N))
    check(items, [98, 98, 74, 74, 50], period=2)
    assert "shim torch_six" in output


@on("reviewkd")
@pytest.mark.parametrize("prefetch", [(), ("--prefetch",)])
def test_reviewkd_with_and_without_a_prefetcher(host: Host, prefetch: tuple[str, ...]) -> None:
    _, items = host.kcd(*ONCE, "CIFAR-100/train.py", "--use-kl", *prefetch)
    check(items, SIZES)


@on("reviewkd")
def test_reviewkds_folders_are_made_in_its_own_alone(host: Host) -> None:
    for output in ("logs", "checkpoints"):
        (host.folder / output).rmdir()
    output, items = host.kcd(*ONCE, "CIFAR-100/train.py", status=2)
    assert "run it in CIFAR-100/" in output
    assert not items
    assert not (host.folder / "logs").exists()
    host.folder /= "CIFAR-100"
    output, items = host.kcd(*ONCE, "train.py", "--epochs", "1")
    assert "shim output_folders: made logs/" in output
    check(items, SIZES[:1])


@on("reviewkd")
def test_labels_that_are_not_the_batchs_stop_the_run(host: Host) -> None:
    output, items = host.kcd(*ONCE, "CIFAR-100/train.py", "--mixup", ok=False)
    assert "other labels than the batch" in output
    assert len(items) <= 3


@on("reviewkd")
def test_reviewkds_imagenet_script_needs_apex(host: Host) -> None:
    script = ("ImageNet/imagenet_amp.py", "folder")
    output, items = host.kcd(*ONCE, script[0], script[1], ok=False)
    assert "needs NVIDIA's apex" in output
    assert "Traceback" not in output
    assert not items
    (host.folder / "ImageNet" / "apex").mkdir()
    (host.folder / "ImageNet" / "apex" / "__init__.py").touch()
    (host.folder / "ImageNet" / "apex" / "amp.py").write_text("def initialize(*both):\n    return both\n")
    output, items = host.kcd(*ONCE, *script, ok=False)  # PIL's images have no mixture
    assert "field 0 can't be mixed" in output
    assert "--mixing none" in output
    assert not items
    output, items = host.kcd(*ONCE, "--mixing", "none", *script)
    check(items, SIZES[:3], mixing="none")


@on("simkd")
def test_simkd_is_observed_where_it_predicts(host: Host) -> None:
    output, items = host.kcd(*ONCE, "train_student.py", "--distill", "simkd")
    check(items, SIZES)
    assert "shim dali" in output


@on("simkd")
def test_batches_the_host_skips_are_not_observed(host: Host) -> None:
    output, items = host.kcd(*ONCE, "train_student.py", "--distill", "semckd", "--epochs", "3")
    check(items, SIZES[:3])
    left_out = sum(size % 16 for size in SIZES[:3])
    assert f"not observed: helper.loops.accuracy was not called for their batches ({left_out} x)" in output


@on("simkd")
def test_processes_that_the_host_spawns(host: Host) -> None:
    output, items = host.kcd(
        *ONCE, "--history", "h.json", "train_student.py", "--multiprocessing-distributed"
    )
    (other,) = host.folder.glob("record1.1")
    both = [items, list(np.load(other, allow_pickle=True))]
    merged: Items = []
    for epoch, size in enumerate(SIZES, 1):
        ranks = [[item for item in one if item["epoch"] == epoch] for one in both]
        assert [len(indices(rank)) for rank in ranks] == [-(-size // 2)] * 2
        if size % 2:  # the second rank's last sample pads it: drawn twice, recorded once
            last = ranks[1][-1]
            last["index"], last["image"] = last["index"][:-1], last["image"][:-1]
            last["logits"] = last["logits"][:-1]
        merged += [item for rank in ranks for item in rank if item["index"]]
    for item in merged:  # batches of one are the host's own there, where the set is whole
        if item["epoch"] == 1 and len(item["index"]) == 1:
            for name in ("index", "image", "logits"):
                item[name] = np.concatenate([item[name], item[name]])
    check(merged, SIZES, ranks=2)
    # Said once, although at the end no process group is left to ask for a rank.
    for text in (
        "kcd: SimKD",
        "the student trains on",
        "stage 1 after epoch 1",
        "samples drawn by the first of 2",
    ):
        assert output.count(text) == 1
    saved, full = sum(N - size for size in SIZES), N * len(SIZES)
    assert f"{saved} of {full} samples saved (" in output
    summary = json.loads((host.folder / "h.json").read_text())["summary"]
    assert (summary["saved"], summary["processes"]) == (saved, 2)
    assert 0 < summary["seconds"] < 600
    assert f", {summary['seconds']:.1f} s\n" in output


@on("simkd")
def test_a_student_that_one_rank_alone_observes_is_an_error_on_all(host: Host) -> None:
    script = ("train_student.py", "--multiprocessing-distributed", "--distill", "lonely")
    output, items = host.kcd(*ONCE, *script, ok=False)
    assert "on 1 of 2 ranks: KCD needs the predictions of all" in output
    assert {item["epoch"] for item in items} <= {1}


@on("simkd")
def test_dali_is_refused(host: Host) -> None:
    output, _ = host.kcd("train_student.py", "--dali", "gpu", ok=False)
    assert "leave out --dali" in output
    assert "Traceback" not in output


@on("mdistiller")
def test_mdistiller_resumes_with_its_set(host: Host) -> None:
    script = ("tools/train.py", "--cfg", "configs/cifar100/kd.yaml")
    path = str(host.folder)  # mdistiller is installed, not beside its script
    kcd = (
        "-c",
        f"import sys; sys.path.append({path!r}); from kcd_adapters.cli import main; sys.exit(main())",
        "run",
        *ONCE,
    )
    output, first = host.run(*kcd, *script, "--epochs", "3")
    check(first, SIZES[:3])
    assert "mdistiller, cifar100/kd (profile mdistiller)" in output
    output, second = host.run(*kcd, *script, "--resume")
    assert "resumed after epoch 3" in output
    check(first + second, SIZES)
    assert not list(host.folder.glob("out/student_*.kcd"))


MDISTILLER = (
    "-c",
    "import sys; sys.path.append('.'); from kcd_adapters.cli import main; sys.exit(main())",
    "run",
)


@on("mdistiller")
def test_what_can_not_be_mixed_fails_at_the_first_batch(host: Host) -> None:
    script = ("tools/train.py", "--whole-numbers")
    output, items = host.run(*MDISTILLER, *ONCE, *script, ok=False)
    assert "integers are never mixed" in output
    assert "--mixing none" in output
    assert not items
    host.run(*MDISTILLER, *ONCE, "--mixing", "none", *script, "--epochs", "2")


@on("mdistiller")
def test_a_checkpoint_that_was_overwritten_is_not_resumed_with_an_old_set(host: Host) -> None:
    script = ("tools/train.py", "--cfg", "configs/cifar100/kd.yaml")
    host.run(*MDISTILLER, *ONCE, *script, "--epochs", "2")
    with (host.folder / "out" / "latest").open("ab") as file:
        file.write(b"another")
    output, items = host.run(*MDISTILLER, *ONCE, *script, "--resume", ok=False)
    assert "belongs to another checkpoint" in output
    assert not items


@on("mdistiller")
def test_spawned_workers(host: Host) -> None:
    script = ("tools/train.py", "--epochs", "3", "--context", "spawn")
    output, items = host.run(*MDISTILLER, *ONCE, *script)
    check(items, SIZES[:3])
    assert output.count("kcd: mdistiller") == 1


AS_FORKSERVER = """
import os
from multiprocessing import spawn
from kcd_adapters.hosts import run
from kcd_adapters.settings import Settings
Settings(ratio=0.5, stages=2, period=1).export()
os.environ[run.SCRIPT] = os.path.abspath("train_student.py")
child = os.path.join(os.path.dirname(run.__file__), "child.py")
spawn.import_main_path(child)  # in the server, from Python 3.14 on
spawn.prepare({"init_main_from_path": child})  # in each process forked from it
print("prepared")
"""


@on("repdistiller")
def test_a_process_forked_from_a_server_has_the_script_already(host: Host) -> None:
    assert "prepared" in host.run("-c", AS_FORKSERVER)[0]


SETS_THREADS = """
import os
import sys
loaded = "torch" in sys.modules
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
import torch
from torch.utils.data import DataLoader
if __name__ != "__mp_main__":
    import losses
    kept = []
    data = [(torch.zeros(1), i % 2) for i in range(8)]
    loader = DataLoader(data, batch_size=4, shuffle=True)
    for _ in range(3):
        kept.append(0)
        for x, y in loader:
            kept[-1] += len(y)
            losses.kd(torch.zeros(len(y), 2, requires_grad=True), y)
    torch.multiprocessing.start_processes(print, args=("child",), nprocs=1, start_method="spawn")
    print("drawn", kept)
print("loaded", loaded, "threads", torch.get_num_threads())
"""


@pytest.mark.parametrize("how", ["run", "patch"])
def test_what_a_script_sets_before_it_imports_torch_counts(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    host = Host("sskd", tmp_path)
    for name, code in {
        "mine.py": "from kcd_adapters.profiles import Profile\n"
        "PROFILE = Profile('mine', 'Mine', 'go.py', (), 'losses.kd', lambda arguments: 'kd')\n",
        "losses.py": "def kd(logits, labels):\n    pass\n",
        "go.py": SETS_THREADS,
    }.items():
        (host.folder / name).write_text(code)
    options = (*ONCE, "--profile", "mine.py")
    if how == "run":
        output, _ = host.kcd(*options, "go.py")
    else:
        host.run("-m", "kcd_adapters", "patch", *options, ".")
        output, _ = host.run("go.py")
    assert output.count("loaded False threads 1") == 2  # in the spawned process, too
    assert "drawn [8, 6, 4]" in output
    assert output.count("kcd: Mine, kd") == 1


def test_unknown_repositories_and_scripts_are_refused(tmp_path: Path) -> None:
    host = Host("sskd", tmp_path)
    (host.folder / "elsewhere").mkdir()
    (host.folder / "elsewhere" / "train.py").write_text("import sys; print('ran', sys.argv[1:])")
    output, _ = host.kcd("elsewhere/train.py", ok=False)
    assert "elsewhere/train.py is not known to train a student. The repository is known (SSKD)" in output
    assert "kcd run student.py ...   (it is SSKD's)" in output
    output, _ = host.kcd("teacher.py", ok=False)
    assert "teacher.py is not known to train a student. The repository is known (SSKD)" in output
    output, _ = host.kcd("missing.py", ok=False)
    assert "there is no script missing.py" in output
    output, _ = host.kcd("elsewhere", ok=False)
    assert "elsewhere is a folder: name the script (kcd patch --check elsewhere lists those" in output
    output, _ = host.kcd("python", "student.py", ok=False)
    assert "leave out python: kcd run [options] student.py" in output
    output, _ = host.kcd("--epochs", "3", "student.py", ok=False)
    assert "unknown option --epochs; the script's own options go after the script" in output
    output, _ = host.kcd("--profile", "sskd", "elsewhere/train.py", "--ratio", "0.3")
    assert (
        "WARNING: after train.py stand options that no Python file around it names: --ratio. They" in output
    )
    output, _ = host.kcd("--profile", "sskd", "elsewhere/train.py", "--", "x", "--ratio", "3")
    assert "WARNING: after" not in output
    assert "ran ['--', 'x', '--ratio', '3']" in output
    assert "utils was never imported; no loader could be followed: no DataLoader was iterated" in output
