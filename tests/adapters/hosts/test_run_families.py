"""Forks whose scripts have other names, run by ``kcd run`` and patched, and recorded rightly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_run import ONCE, SIZES, Host, check, on

from kcd_adapters.cli import main
from kcd_adapters.hosts import shims

OURS = ("tools/train_ours.py", "--cfg", "configs/cifar100/ours/res32x4_res8x4.yaml", "--logit-stand")


@pytest.fixture
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Host:
    return Host(request.param, tmp_path)


@on("mlld")
def test_a_fork_of_mdistiller_by_another_script(host: Host) -> None:
    output, items = host.kcd(*ONCE, *OURS)
    check(items, SIZES[:4])
    assert output.startswith("kcd: mdistiller family: 'mlld', ")
    assert "cifar100/ours/res32x4_res8x4" in output.splitlines()[0]
    assert " --logit-stand (profile mdistiller); " in output.splitlines()[0]


@on("norm")
def test_a_descendant_of_repdistiller_with_a_head_beside_the_student(host: Host) -> None:
    output, items = host.kcd(*ONCE, "train_cifar_student.py")
    check(items, SIZES[:4])
    assert output.startswith("kcd: RepDistiller family: 'norm', NORM (profile repdistiller); ")
    assert output.count("kcd: shim accuracy_view: accuracy() takes a view") == 1


@on("mlld")
def test_the_script_that_was_named_is_patched_and_trains(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    script = host.folder / "tools" / "train_ours.py"
    original = script.read_bytes()
    assert main(["patch", str(script), *ONCE]) == 0
    promised = "tools/train_ours.py prints is \"kcd: mdistiller family: 'mlld', ...\""
    assert promised in capsys.readouterr().out
    output, items = host.run(*OURS)
    assert output.startswith("kcd: mdistiller family: 'mlld', ")
    check(items, SIZES[:4])
    assert main(["unpatch", str(script)]) == 0
    assert script.read_bytes() == original


def test_a_view_is_bridged_in_functions_of_an_accuracy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.Tensor, "view", torch.Tensor.view)  # to be put back
    said: list[str] = []
    shims.install(["accuracy_view"], (), said.append)
    columns = torch.arange(6.0).reshape(2, 3).t()

    def topk_accuracy(correct: object) -> list[object]:
        return [columns[:k].view(-1) for k in (1, 3)]

    def view(correct: object) -> object:
        return columns.view(-1)

    one, all_of_them = topk_accuracy(columns)
    np.testing.assert_array_equal(one, [0, 3])
    np.testing.assert_array_equal(all_of_them, [0, 3, 1, 4, 2, 5])
    assert said == [
        "shim accuracy_view: topk_accuracy() takes a view of a tensor that is not contiguous; a copy takes its place"
    ]
    with pytest.raises(RuntimeError, match="not compatible"):
        view(columns)

    def accuracy() -> None:
        columns.view(7)

    with pytest.raises(RuntimeError, match="invalid for input of size 6"):
        accuracy()
    whole = torch.zeros(6)
    assert whole.view(2, 3).data_ptr() == whole.data_ptr()
