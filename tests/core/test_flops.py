"""Floating-point operations: by the formulas of the layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kcd_core as kcd


def test_linear_layers_and_convolutions_by_formula() -> None:
    """Two for each multiplication and addition; a batch of any size gives those of one sample."""
    student = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    )
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 30), nn.ReLU(), nn.Linear(30, 5))
    for size in (1, 7):
        step = kcd.step_flops(student, teacher, torch.zeros(size, 3, 8, 8))
        assert step == (2 * 3 * 9 * 4 * 16 + 2 * 64 * 5, 2 * 192 * 30 + 2 * 30 * 5)
    assert kcd.step_flops(student, None, torch.zeros(2, 3, 8, 8)).teacher == 0


def test_attention_by_formula() -> None:
    """In a layer that torch would take for one operation, which it does not count; on a CPU, too."""
    length, width, inside = 4, 8, 16
    layer = nn.TransformerEncoderLayer(width, 2, inside, batch_first=True)
    products = 4 * width * width + 2 * width * inside  # projections in and out, and the two linear layers
    by_formula = 2 * length * products + 2 * 2 * length * length * width
    fused = torch.backends.mha.get_fastpath_enabled()
    assert kcd.step_flops(layer, layer, torch.zeros(3, length, width)) == (by_formula, by_formula)
    assert torch.backends.mha.get_fastpath_enabled() == fused


def test_models_are_left_as_they_were() -> None:
    """Modes, statistics, gradients and random numbers; also where eval() would change the model."""

    class Merges(nn.Linear):
        def train(self, mode: bool = True) -> nn.Module:
            raise AssertionError("a model's own train() and eval() are not called")

    model = nn.Sequential(Merges(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[1].training = False
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    kcd.step_flops(model, model, torch.ones(3, 4))
    assert [part.training for part in model.modules()] == [True, True, False, True]
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.append(nn.Linear(5, 5))  # which fails
    with pytest.raises(RuntimeError):
        kcd.step_flops(model, None, torch.ones(3, 4))
    assert [part.training for part in model.modules()] == [True, True, False, True, True]


def test_several_inputs_and_models_in_wrappers() -> None:
    def bilinear(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b.T

    a, b = torch.zeros(4, 6), torch.zeros(3, 6)
    assert kcd.step_flops(bilinear, bilinear, (a, b)) == (2 * 4 * 6 * 3 / 4,) * 2
    assert kcd.step_flops(bilinear, None, {"a": a, "b": b}).student == 2 * 6 * 3
    model = nn.Linear(6, 2)
    compiled = torch.compile(model, backend="eager")
    assert kcd.step_flops(compiled, nn.DataParallel(compiled), a) == (24, 24)


@pytest.mark.parametrize("example", [3, (), torch.zeros(0, 6), torch.tensor(1.0), {"a": None}], ids=str)
def test_without_samples_it_is_refused(example: object) -> None:
    with pytest.raises(TypeError, match=r"example must be a batch of inputs, tensors \[B, ...\]"):
        kcd.step_flops(nn.Linear(6, 2), None, example)


def test_what_is_not_counted_is_said() -> None:
    with torch.library._scoped_library("kcd_test", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CPU")
        model = nn.Linear(6, 2)
        with pytest.warns(
            UserWarning, match=r"the teacher calls operations .* are not counted: kcd_test\.twice"
        ) as told:
            step = kcd.step_flops(model, lambda x: torch.ops.kcd_test.twice(model(x)), torch.zeros(3, 6))
        assert step == (24, 24)
        assert [one.filename for one in told] == [__file__]
    with pytest.warns(UserWarning, match="nothing of the student's forward pass was counted"):
        assert kcd.step_flops(F.relu, None, torch.zeros(3, 6)).student == 0


def test_a_run_and_plain_distillation() -> None:
    """Three student passes for each sample drawn, and one teacher pass for each that is asked."""
    step, cost = kcd.StepFlops(student=10.0, teacher=70.0), kcd.Cost(drawn=800, asked=250, plain=1000)
    assert step.of(cost) == 800 * 30 + 250 * 70
    assert step.of_plain(cost) == 1000 * 100
    assert step.of_plain(kcd.Cost(drawn=800, asked=250)) == 0
