"""Patched repositories train with KCD by their own command line, and as ``kcd run`` would train them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_run import ONCE, SIZES, Host, Items, check, on, phase

from kcd_adapters.cli import main

COMMANDS = {
    "repdistiller": ("train_student.py", "--num_workers", "2"),
    "sskd": ("student.py", "--epoch", "6"),
    "simkd": ("train_student.py", "--distill", "simkd"),
    "reviewkd": ("CIFAR-100/train.py", "--use-kl"),
    "mdistiller": ("tools/train.py", "--cfg", "configs/cifar100/kd.yaml"),
}


@pytest.fixture
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Host:
    return Host(request.param, tmp_path)


def sources(host: Host) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(host.folder.rglob("*.py"))}


def same(one: Items, other: Items) -> bool:
    """Whether two runs drew and predicted the same, to the bit."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in ("phase", "epoch", "index"):
            assert a.get(name) == b.get(name)
        for name in ("image", "logits"):
            np.testing.assert_array_equal(a.get(name), b.get(name))
    return True


@pytest.mark.parametrize("host", list(COMMANDS), indirect=True)
def test_own_command_line(host: Host) -> None:
    name, original = host.folder.name, sources(host)
    command = COMMANDS[name]
    if name == "mdistiller":  # which is installed there
        (host.folder / "tools" / "mdistiller").symlink_to(host.folder / "mdistiller")
    _, by_run = host.kcd(*ONCE, *command)
    assert sources(host) == original
    assert main(["patch", str(host.folder), *ONCE]) == 0
    output, by_patch = host.run(*command)
    check(by_patch, SIZES)
    assert same(by_run, by_patch)
    assert "stage 1 after epoch 1: 74 of 98 kept" in output
    assert main(["patch", "--check", str(host.folder)]) == 0
    assert main(["unpatch", str(host.folder)]) == 0
    assert sources(host) == original


@on("simkd")
def test_processes_that_the_host_spawns(host: Host) -> None:
    original = sources(host)
    command = ("train_student.py", "--multiprocessing-distributed")
    assert main(["patch", str(host.folder), *ONCE]) == 0
    host.run(*command)
    drawn: dict[int, set[int]] = {}
    for path in sorted(host.folder.glob("record1.[01]")):
        for item in np.load(path, allow_pickle=True):
            drawn.setdefault(item["epoch"], set()).update(item["index"])
    assert [len(drawn[epoch]) for epoch in sorted(drawn)] == SIZES
    assert main(["unpatch", str(host.folder)]) == 0
    assert sources(host) == original


@on("mdistiller")
def test_workers_that_a_loader_spawns_run_the_block_too(host: Host) -> None:
    (host.folder / "tools" / "mdistiller").symlink_to(host.folder / "mdistiller")
    assert main(["patch", str(host.folder), *ONCE]) == 0
    script = host.folder / "tools" / "train.py"
    line = b"open('ran', 'a').write(__name__ + ' ')  # the block's last line\n# <<< kcd patch"
    script.write_bytes(script.read_bytes().replace(b"# <<< kcd patch", line))
    output, items = host.run("tools/train.py", "--epochs", "3", "--context", "spawn")
    check(items, SIZES[:3])
    # Persistent workers live on: a new set reaches them with the keys.
    assert (host.folder / "ran").read_text().split() == ["__main__", "__mp_main__"]
    assert output.count("kcd: mdistiller") == 1


@on("repdistiller")
def test_nothing_changes_at_ratio_one(host: Host) -> None:
    command = ("train_student.py", "--epochs", "3")
    (plain,) = phase(host.run(*command, old=True)[1], "weights")
    assert main(["patch", str(host.folder), "--ratio", "1.0", "--period", "1"]) == 0
    (mine,) = phase(host.run(*command)[1], "weights")
    for name, weight in plain["state"].items():
        assert weight.tobytes() == mine["state"][name].tobytes()


@on("sskd")
def test_settings_edited_by_hand_count(host: Host, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["patch", str(host.folder), "--ratio", "0.9", *ONCE[2:]]) == 0
    script = host.folder / "student.py"
    edited = script.read_bytes().replace(b"ratio=0.9", b"ratio=0.5")
    script.write_bytes(edited.replace(b"    profile=", b"    history='h.json',\n    profile="))
    assert main(["patch", "--check", str(host.folder)]) == 0
    check(host.run("student.py", "--epoch", "3")[1], SIZES[:3])
    assert main(["report", str(host.folder / "h.json"), "-o", str(tmp_path / "report")]) == 0


@on("repdistiller")
def test_patched_script_can_not_be_run_by_kcd_run_as_well(host: Host) -> None:
    assert main(["patch", str(host.folder), *ONCE]) == 0
    output, items = host.kcd(*ONCE, "train_student.py", status=2)
    assert "kcd: train_student.py was changed by kcd patch: run it with python" in output
    assert len(output.splitlines()) == 1
    assert not items
