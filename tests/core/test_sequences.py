"""`sequence_entropy` against a reading token by token in float64, and what a run records by it."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_values import KINDS, LiveBytes, cast, number, plain, torchs_own

import kcd_core as kcd


def inputs(b: int = 6, t: int = 9, c: int = 11, seed: int = 0) -> dict[str, Any]:
    """Prompts and padding of every length, as -100; one sequence has no other label."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, c, (b, t))
    for row, (first, last) in enumerate(np.sort(rng.integers(0, t + 1, (b, 2)))):
        targets[row, :first] = targets[row, last:] = -100
    targets[1 % b] = -100
    return {"student_logits": rng.normal(0, 3, (b, t, c)), "targets": targets}


def expected(student_logits: Any, targets: Any) -> Any:
    means = []
    for logits, labels in zip(np.asarray(student_logits, np.float64), np.asarray(targets), strict=True):
        read = [
            reference.entropy(token) for token, label in zip(logits, labels, strict=True) if label != -100
        ]
        means.append(math.fsum(read) / len(read) if read else math.nan)
    return means


@pytest.mark.parametrize("kind", KINDS)
def test_against_the_reference(kind: str) -> None:
    given = cast(inputs(), kind)
    got = kcd.sequence_entropy(**given)
    want = expected(number(given["student_logits"]), given["targets"])
    assert 0 < np.isnan(want).sum() < 6
    np.testing.assert_allclose(number(got), want, rtol=1e-11 if kind.endswith("64") else 1e-5)
    assert got.shape == (6,)
    assert isinstance(got, torch.Tensor) == kind.startswith("torch")


@given(
    st.integers(1, 4).flatmap(
        lambda length: st.lists(
            st.lists(
                st.tuples(
                    st.sampled_from([-100, 0, 2]), st.lists(st.floats(-700, 700), min_size=3, max_size=3)
                ),
                min_size=length,
                max_size=length,
            ),
            min_size=1,
            max_size=4,
        )
    )
)
def test_any_sequences(batch: Any) -> None:
    targets = np.array([[label for label, _ in tokens] for tokens in batch])
    logits = np.array([[token for _, token in tokens] for tokens in batch])
    got = kcd.sequence_entropy(logits, targets=targets)
    np.testing.assert_allclose(got, expected(logits, targets), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, *(f"other {kind}" for kind in KINDS if kind.startswith("torch"))])
@pytest.mark.parametrize(("t", "c"), [(40, 11), (67, 101), (5, 9001)])
def test_a_value_depends_on_its_sequence_alone(kind: str, t: int, c: int) -> None:
    """To the last bit: not on padding on either side, the sequences beside it, or where the logits lie."""
    given = cast(inputs(6, t, c), kind.removeprefix("other "))
    if kind.startswith("other"):
        given = {k: torchs_own(x) for k, x in given.items()}
    whole = plain(kcd.sequence_entropy(**given))
    logits, targets = given["student_logits"], given["targets"]
    for row in range(6):
        one = kcd.sequence_entropy(logits[row : row + 1], targets=targets[row : row + 1])
        np.testing.assert_array_equal(plain(one), whole[[row]])
        counted = np.flatnonzero(targets[row] != -100)
        if len(counted):
            alone = logits[row : row + 1, counted], targets[row : row + 1, counted]
            np.testing.assert_array_equal(
                plain(kcd.sequence_entropy(alone[0], targets=alone[1])), whole[[row]]
            )
    apart = logits[:, :-1]  # as a causal model's: one after the other, with a gap
    if isinstance(apart, np.ndarray):
        close = np.ascontiguousarray(apart)
    else:
        assert not apart.is_contiguous()
        close = apart.contiguous()
    got = kcd.sequence_entropy(apart, targets=targets[:, :-1])
    np.testing.assert_array_equal(plain(got), plain(kcd.sequence_entropy(close, targets=targets[:, :-1])))


@pytest.mark.parametrize("kind", ["numpy float32", "torch float32", "torch bfloat16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite(kind: str, bad: float) -> None:
    """It spoils the sequence whose token it is, and none if that token does not count."""
    given = inputs(3)
    given["targets"][:] = 1
    given["targets"][0, 4] = -100
    clean = number(kcd.sequence_entropy(**cast(given, kind)))
    given["student_logits"][0, 4, 2] = given["student_logits"][2, 3, 0] = bad
    got = number(kcd.sequence_entropy(**cast(given, kind)))
    np.testing.assert_array_equal(got, [*clean[:2], math.nan])


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_no_sequences_and_no_tokens(library: str, shape: Any) -> None:
    given = {"student_logits": np.zeros((*shape, 5)), "targets": np.zeros(shape, int)}
    got = kcd.sequence_entropy(**cast(given, f"{library} float32"))
    np.testing.assert_array_equal(got, [math.nan] * shape[0])


def test_a_label_on_a_device_that_is_no_class_gives_nan() -> None:
    """What a host would wait for, were it looked at. Meta tensors have no data: another class stands for a device."""
    logits = torch.randn(3, 2, 4)
    labels = torch.tensor([[0, 1], [2, 4], [-1, -100]])
    got = kcd.sequences.token_entropy(logits, labels)
    np.testing.assert_array_equal(np.isfinite(got), [[True, True], [True, False], [False, True]])


def test_refusals() -> None:
    given = inputs()
    logits, targets = given["student_logits"], given["targets"]
    of = kcd.sequence_entropy
    with pytest.raises(ValueError, match="'sequence_entropy' needs targets="):
        of(logits)
    with pytest.raises(ValueError, match=r"student_logits must be \[B, T, C\] .* got shape \(9, 11\)"):
        of(logits[0], targets=targets[0])
    with pytest.raises(ValueError, match=r"C >= 2 classes, .* got shape \(6, 9, 1\)"):
        of(logits[:, :, :1], targets=targets)
    with pytest.raises(ValueError, match=r"\(6, 9\), .* got shape \(6, 8\); .* logits\[:, :-1\] go with"):
        of(logits, targets=targets[:, 1:])
    with pytest.raises(ValueError, match=r"one row per sample \(6\), got 5"):
        of(logits, targets=targets[:5])
    with pytest.raises(TypeError, match=r"labels \(integers\), got dtype float64"):
        of(logits, targets=targets * 1.0)
    with pytest.raises(TypeError, match="floating-point logits, got dtype int64"):
        of(logits.astype(int), targets=targets)
    for wrong in (-1, 11, -101):
        with pytest.raises(IndexError, match=rf"in 0 .. 10, or be -100 .* got {wrong}"):
            of(logits, targets=np.where(targets == -100, wrong, targets))
    with pytest.raises(ValueError, match='choose value="sequence_entropy"'):
        kcd.entropy(logits)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_recorded(device: Any) -> None:
    """Through a loader: padding and sequences without a label are not recorded, and the latter are told."""
    given = inputs(8, seed=3)
    data = [*zip(torch.tensor(given["student_logits"]), torch.tensor(given["targets"]), strict=True)]
    loader = kcd.wrap_loader(
        torch.utils.data.DataLoader(data, batch_size=3),  # type: ignore[arg-type]
        schedule=kcd.CondensationSchedule(0.5, 1, 1),
        value="sequence_entropy",
        mixing=None,
        device=device,
    )
    for logits, targets in loader:
        loader.record(logits.requires_grad_(), targets=targets)
    want = np.array(expected(**given))
    with pytest.warns(RuntimeWarning, match="a sequence whose labels are all -100"):
        np.testing.assert_allclose(np.asarray(loader.tracker.value), want, rtol=1e-11)
    np.testing.assert_array_equal(np.asarray(loader.tracker.count), ~np.isnan(want))
    tracker = kcd.KnowledgeValueTracker(4, value="sequence_entropy", device=device)
    tracker.update([2, -1, 0], torch.zeros(3, 2, 5), targets=torch.zeros(3, 2, dtype=torch.int64))
    np.testing.assert_array_equal(np.asarray(tracker.count), [1, 0, 1, 0])
    assert tracker.state_dict()["value"] == "sequence_entropy"


def test_probabilities_of_tokens_are_told() -> None:
    tracker = kcd.KnowledgeValueTracker(4, value="sequence_entropy")
    with pytest.warns(UserWarning, match="looks like probabilities"):
        tracker.update([0], torch.rand(1, 5, 6).softmax(-1), targets=[[0, 1, 2, 3, -100]])


@pytest.mark.parametrize(
    ("library", "dtype"),
    [("numpy", "float16"), ("torch", "bfloat16"), ("torch", "float32")],
)
def test_memory_is_at_most_a_quarter_of_the_logits(library: str, dtype: str) -> None:
    """64 MB of them, in one piece and as a causal model's, shifted, in many short sequences and in a few long ones.

    On a device: test_cuda.
    """
    with LiveBytes():
        kcd.entropy(torch.zeros(2, 3))  # torch imports much at the first operation that a mode sees
    for length in (17, 1025):
        rows = 2**26 // 8192 // (4 if dtype == "float32" else 2) // (length - 1)
        made: Any = torch.zeros(rows, length, 8192, dtype=getattr(torch, dtype))
        if library == "numpy":
            made = made.numpy()
        for logits in (made[:, :-1], made[: rows - 1]):
            targets: Any = np.zeros(logits.shape[:2], np.int64)
            targets = targets if library == "numpy" else torch.from_numpy(targets)
            tracemalloc.start()
            with LiveBytes() as live:
                kcd.sequence_entropy(logits, targets=targets)
            peak = (
                tracemalloc.get_traced_memory()[1] + live.most / 4
            )  # torch makes copies alone, one at a time
            tracemalloc.stop()
            assert peak <= 2**26 / 4
