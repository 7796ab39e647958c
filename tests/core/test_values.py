"""Knowledge values against float64 SciPy, in every precision and from every kind of array."""

from __future__ import annotations

import math
import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import pytest
import reference
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kcd_core as kcd
from kcd_core.value_function import ValueFunction

BUILT_IN = [kcd.entropy, kcd.cross_entropy, kcd.kd_divergence, kcd.margin, kcd.reducible_loss]


def inputs(b: int = 64, c: int = 10, scale: float = 3.0, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "student_logits": rng.normal(0, scale, (b, c)),
        "teacher_logits": rng.normal(0, scale, (b, c)),
        "targets": rng.integers(0, c, b),
    }


def expected(function: Any, student_logits: Any, teacher_logits: Any, targets: Any) -> Any:
    """Float64, with SciPy's own functions of probabilities."""
    p = scipy.special.softmax(np.asarray(student_logits, np.float64), -1)
    t = scipy.special.softmax(np.asarray(teacher_logits, np.float64), -1)
    if function is kcd.entropy:
        return scipy.special.entr(p).sum(-1)
    if function is kcd.cross_entropy:
        return -np.log(p[np.arange(len(p)), targets])
    if function is kcd.reducible_loss:
        log_t, log_p = (
            scipy.special.log_softmax(np.asarray(x, np.float64), -1) for x in (teacher_logits, student_logits)
        )
        return (log_t - log_p)[np.arange(len(p)), targets]
    if function is kcd.kd_divergence:
        return scipy.special.rel_entr(t, p).sum(-1)
    ordered = np.sort(p, -1)
    return 1 - (ordered[:, -1] - ordered[:, -2])


def cast(given: dict[str, Any], kind: str) -> dict[str, Any]:
    """The same inputs as arrays of another kind: "numpy float16", "torch bfloat16", ..."""
    library, dtype = kind.split()
    if library == "numpy":
        return {k: x if k == "targets" else x.astype(dtype) for k, x in given.items()}
    made = {k: torch.from_numpy(x) for k, x in given.items()}
    return {k: x if k == "targets" else x.to(getattr(torch, dtype)) for k, x in made.items()}


def number(x: Any) -> Any:
    return x.double().numpy() if isinstance(x, torch.Tensor) else x.astype(np.float64)


KINDS = {
    "numpy float64": 1e-13,
    "torch float64": 1e-13,
    "numpy float32": 1e-5,
    "torch float32": 1e-5,
    "numpy float16": 1e-5,  # against the rounded logits: they are reduced in float32
    "torch float16": 1e-5,
    "torch bfloat16": 1e-5,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", BUILT_IN)
@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0, 10.0])
def test_against_scipy(function: Any, kind: str, scale: float) -> None:
    given = cast(inputs(scale=scale), kind)
    got = function(**given)
    wide = {k: number(x) if k != "targets" else np.asarray(x) for k, x in given.items()}
    np.testing.assert_allclose(number(got), expected(function, **wide), rtol=KINDS[kind], atol=KINDS[kind])
    assert tuple(got.shape) == (64,)
    assert str(got.dtype).endswith("64" if kind.endswith("64") else "32")
    assert isinstance(got, torch.Tensor) == kind.startswith("torch")


@given(st.lists(st.lists(st.floats(-700, 700), min_size=3, max_size=3), min_size=1, max_size=5))
def test_entropy_against_the_reference(logits: list[list[float]]) -> None:
    got = kcd.entropy(np.array(logits))
    np.testing.assert_allclose(got, [reference.entropy(row) for row in logits], rtol=1e-9, atol=1e-14)
    assert (got >= 0).all()
    assert (got <= math.log(3) * (1 + 1e-14)).all()
    np.testing.assert_allclose(kcd.entropy(torch.tensor(logits, dtype=torch.float64)), got, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_direction(kind: str) -> None:
    """Higher means more worth learning: an unsure student, a wrong one, one far from its teacher."""
    sure, unsure, wrong = [9.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 9.0, 0.0]
    given = {"student_logits": np.array([sure, unsure, wrong]), "targets": np.zeros(3, np.int64)}
    given = cast({**given, "teacher_logits": np.array([sure] * 3)}, kind)
    for function, order in [
        (kcd.entropy, [0, 1]),
        (kcd.margin, [0, 1]),
        (kcd.cross_entropy, [0, 1, 2]),
        (kcd.kd_divergence, [0, 1, 2]),
        (kcd.reducible_loss, [0, 1, 2]),
    ]:
        got = number(function(**given))[order]
        assert (np.diff(got) > 1e-3).all()
    assert number(kcd.kd_divergence(**given))[0] == 0


# Gaps whose exp() is 0 in the precision that is computed in: p log p would be 0 * -inf.
GAPS = {"float16": 18.0, "bfloat16": 120.0, "float32": 120.0, "float64": 800.0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", BUILT_IN)
@pytest.mark.parametrize("times", [1, 100])
def test_underflow(function: Any, kind: str, times: int) -> None:
    gap = GAPS[kind.split()[1]] * times
    rows = np.array([[0.0, -gap, -gap / 2], [gap, 0.0, 1.0]])
    given = cast(
        {"student_logits": rows, "teacher_logits": rows[::-1].copy(), "targets": np.array([0, 0])}, kind
    )
    got = number(function(**given))
    wide = {k: number(x) if k != "targets" else np.asarray(x) for k, x in given.items()}
    assert np.isfinite(got).all()
    if function in (kcd.entropy, kcd.margin):
        np.testing.assert_allclose(got, expected(function, **wide), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", BUILT_IN)
def test_saturated_is_exactly_zero(function: Any, kind: str) -> None:
    gap = GAPS[kind.split()[1]] * (8 if "float16" in kind else 1)
    rows = np.array([[gap, 0.0, 0.0], [0.0, -gap, -gap]])
    given = cast({"student_logits": rows, "teacher_logits": rows, "targets": np.array([0, 0])}, kind)
    np.testing.assert_array_equal(number(function(**given)), [0.0, 0.0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", BUILT_IN)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 9])
def test_one_logit_not_finite_gives_nan(function: Any, kind: str, bad: float, place: int) -> None:
    given = inputs(5)
    given["targets"][:] = 2
    clean = number(function(**cast(given, kind)))
    given["student_logits"][3, place] = bad
    got = number(function(**cast(given, kind)))
    np.testing.assert_array_equal(np.isnan(got), [False, False, False, True, False])
    np.testing.assert_array_equal(np.delete(got, 3), np.delete(clean, 3))  # one row spoils no other


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_teacher_logit_not_finite_gives_nan(kind: str, bad: float) -> None:
    given = inputs(3)
    given["teacher_logits"][1, 4] = bad
    got = number(kcd.kd_divergence(**cast(given, kind)))
    np.testing.assert_array_equal(np.isnan(got), [False, True, False])


def test_temperature() -> None:
    given = inputs()
    softened = {k: x / 4 if k != "targets" else x for k, x in given.items()}
    want = expected(kcd.kd_divergence, **softened)
    function = partial(kcd.kd_divergence, temperature=4.0)
    np.testing.assert_allclose(function(**given), want, rtol=1e-12)
    np.testing.assert_allclose(function(**cast(given, "torch float64")), want, rtol=1e-12)
    half = cast(given, "torch float16")  # 1 / 4 in float16 would round
    np.testing.assert_allclose(number(function(**half)), want, rtol=0.02, atol=1e-3)


class OnlyDLPack:
    """An array that offers DLPack and nothing else, as JAX's or CuPy's look to a stranger."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


@pytest.mark.parametrize("function", BUILT_IN)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_arrays_through_dlpack(function: Any, dtype: str) -> None:
    given = cast(inputs(), f"numpy {dtype}")
    got = function(**{k: OnlyDLPack(x) for k, x in given.items()})
    np.testing.assert_array_equal(got, function(**given), strict=True)


def test_bfloat16_through_dlpack_is_refused_in_words() -> None:
    """NumPy has no bfloat16: a clear error, not an array of objects that is ranked."""
    with pytest.raises(TypeError, match="floating-point"):
        kcd.entropy(OnlyDLPack(torch.zeros(2, 3, dtype=torch.bfloat16)))


@pytest.mark.parametrize("function", BUILT_IN)
def test_lists_and_mixed_libraries(function: Any) -> None:
    given = cast(inputs(4), "numpy float64")
    want = function(**given)
    np.testing.assert_array_equal(function(**{k: x.tolist() for k, x in given.items()}), want)
    others = {k: torch.from_numpy(x).requires_grad_(k != "targets") for k, x in given.items()}
    mixed = {**given, "student_logits": others["student_logits"]}
    np.testing.assert_allclose(function(**mixed).detach(), want, rtol=1e-12)
    mixed = {**others, "student_logits": given["student_logits"]}
    np.testing.assert_array_equal(function(**mixed), want)


def test_half_precision_teacher_of_another_library() -> None:
    given = cast(inputs(4), "torch bfloat16")
    student = given["student_logits"].float().numpy()
    got = kcd.kd_divergence(student, teacher_logits=given["teacher_logits"])
    np.testing.assert_allclose(got, kcd.kd_divergence(**given), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("function", BUILT_IN)
def test_inputs_are_not_written_to(function: Any) -> None:
    for kind in ("numpy float32", "torch float32", "torch bfloat16"):
        given = cast(inputs(4), kind)
        before = {k: x.clone() if isinstance(x, torch.Tensor) else x.copy() for k, x in given.items()}
        function(**given)
        for name, x in given.items():
            assert (x == before[name]).all()
    given = cast(inputs(4), "numpy float32")
    for x in given.values():
        x.flags.writeable = False
    function(**given)


@pytest.mark.parametrize("kind", ["numpy float32", "torch float32"])
@pytest.mark.parametrize("function", BUILT_IN)
def test_empty_and_strided_batches(function: Any, kind: str) -> None:
    given = cast(inputs(8), kind)
    assert tuple(function(**{k: x[:0] for k, x in given.items()}).shape) == (0,)
    want = function(**given)
    every_other = function(**{k: x[::2] for k, x in given.items()})
    np.testing.assert_allclose(every_other, want[::2], rtol=1e-6)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("function", BUILT_IN)
@pytest.mark.parametrize(
    ("shape", "dtype", "error", "message"),
    [
        ((4, 1), "float32", ValueError, r"C >= 2 classes, got shape \(4, 1\)"),
        ((4, 0), "float32", ValueError, "C >= 2"),
        ((4,), "float32", ValueError, r"got shape \(4,\)"),
        ((4, 3, 2), "float32", ValueError, r"got shape \(4, 3, 2\)"),
        ((4, 3), "int64", TypeError, "student_logits must be floating-point logits, got dtype int64"),
        ((4, 3), "bool", TypeError, "got dtype bool"),
        ((4, 3), "complex64", TypeError, "got dtype complex64"),
    ],
)
def test_logits_refused(
    function: Any, library: str, shape: Any, dtype: str, error: Any, message: str
) -> None:
    logits: Any = np.ones(shape, dtype)
    logits = torch.from_numpy(logits) if library == "torch" else logits
    with pytest.raises(error, match=message):
        function(logits, teacher_logits=np.ones((4, 3)), targets=np.zeros(4, int))


@pytest.mark.parametrize("kind", ["numpy float32", "torch float32"])
def test_what_a_value_needs(kind: str) -> None:
    given = cast(inputs(4), kind)
    student, teacher, targets = given["student_logits"], given["teacher_logits"], given["targets"]
    with pytest.raises(ValueError, match="'kd_divergence' needs teacher_logits="):
        kcd.kd_divergence(student)
    with pytest.raises(ValueError, match="'cross_entropy' needs targets="):
        kcd.cross_entropy(student)
    with pytest.raises(ValueError, match="'reducible_loss' needs teacher_logits="):
        kcd.reducible_loss(student, targets=targets)
    with pytest.raises(ValueError, match="'reducible_loss' needs targets="):
        kcd.reducible_loss(student, teacher_logits=teacher)
    with pytest.raises(ValueError, match="must have the student's shape"):
        kcd.reducible_loss(student, teacher_logits=teacher[:, :3], targets=targets)
    with pytest.raises(IndexError, match=r"targets must lie in 0 .. 9"):
        kcd.reducible_loss(student, teacher_logits=teacher, targets=[0, 1, 2, 10])
    with pytest.raises(ValueError, match=r"one row per sample \(4\), got 3"):
        kcd.kd_divergence(student, teacher_logits=teacher[:3])
    with pytest.raises(ValueError, match="must have the student's shape"):
        kcd.kd_divergence(student, teacher_logits=teacher[:, :3])
    with pytest.raises(TypeError, match="teacher_logits must be floating-point"):
        kcd.kd_divergence(student, teacher_logits=np.ones((4, 10), int))
    with pytest.raises(ValueError, match=r"one row per sample \(4\), got 5"):
        kcd.cross_entropy(student, targets=np.zeros(5, int))
    with pytest.raises(TypeError, match=r"class indices \(integers\), got dtype float"):
        kcd.cross_entropy(student, targets=teacher[:, 0])
    with pytest.raises(ValueError, match=r"one class per sample, got shape \(4, 1\)"):
        kcd.cross_entropy(student, targets=targets[:, None])
    for wrong in (10, -1, -100):
        with pytest.raises(IndexError, match=r"targets must lie in 0 .. 9"):
            kcd.cross_entropy(student, targets=[0, 1, 2, wrong])


class OfAnotherClass(torch.Tensor):
    """As functorch's and fake ones are: computed by torch, in host memory, too."""


def torchs_own(x: Any) -> Any:
    return x.as_subclass(OfAnotherClass) if x.is_floating_point() else x


def plain(x: Any) -> Any:
    return number(x.as_subclass(torch.Tensor) if isinstance(x, torch.Tensor) else x)


@pytest.mark.parametrize("kind", [*KINDS, *(f"other {kind}" for kind in KINDS if kind.startswith("torch"))])
@pytest.mark.parametrize("function", BUILT_IN)
@pytest.mark.parametrize(("rows", "classes"), [(67, 2), (67, 10), (67, 101), (34, 1001), (5, 40_000)])
def test_a_value_depends_on_its_row_alone(function: Any, kind: str, rows: int, classes: int) -> None:
    """To the last bit: not on the rows beside it, their order, their layout, or the number of threads."""
    given = cast(inputs(rows, classes), kind.removeprefix("other "))
    if kind.startswith("other"):
        given = {k: torchs_own(x) for k, x in given.items()}
    whole = plain(function(**given))
    wide = {k: plain(x) if k != "targets" else np.asarray(x) for k, x in given.items()}
    np.testing.assert_allclose(whole, expected(function, **wide), rtol=2e-5, atol=2e-6)
    for size in (1, 2, 33):
        cuts = range(0, rows, size)
        parts = [function(**{k: x[start : start + size] for k, x in given.items()}) for start in cuts]
        np.testing.assert_array_equal(np.concatenate([plain(x) for x in parts]), whole)
    order = np.random.default_rng(0).permutation(rows)
    np.testing.assert_array_equal(plain(function(**{k: x[order] for k, x in given.items()})), whole[order])
    columns = {k: x if k == "targets" else x.T[:].copy().T if "numpy" in kind else x.t().contiguous().t()
               for k, x in given.items()}  # fmt: skip
    np.testing.assert_array_equal(plain(function(**columns)), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        np.testing.assert_array_equal(plain(function(**given)), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("function", BUILT_IN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_can_be_differentiated(function: Any, dtype: Any) -> None:
    """Against torch's own softmax."""
    given = cast(inputs(9, 41), "torch float64")
    given = {
        k: x if k == "targets" else x.to(dtype).requires_grad_(k == "student_logits")
        for k, x in given.items()
    }
    student, teacher = given["student_logits"], given["teacher_logits"]
    log_p, p = student.double().log_softmax(-1), student.double().softmax(-1)
    want = {
        "entropy": -(p * log_p).sum(-1),
        "cross_entropy": torch.nn.functional.cross_entropy(
            student.double(), given["targets"], reduction="none"
        ),
        "kd_divergence": torch.nn.functional.kl_div(
            log_p, teacher.double().softmax(-1), reduction="none"
        ).sum(-1),
        "reducible_loss": torch.nn.functional.cross_entropy(
            student.double(), given["targets"], reduction="none"
        )
        - torch.nn.functional.cross_entropy(teacher.double(), given["targets"], reduction="none"),
        "margin": 1 - p.topk(2).values[:, 0] + p.topk(2).values[:, 1],
    }[function.__name__]
    weights = torch.linspace(-1, 1, 9, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((function(**given) * weights).sum(), student)
    (right,) = torch.autograd.grad((want * weights).sum(), student)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(gradient.double(), right.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("function", BUILT_IN)
def test_no_rows_can_be_differentiated(function: Any) -> None:
    logits = torch.zeros(0, 5, requires_grad=True)
    got = function(logits, teacher_logits=logits, targets=torch.zeros(0, dtype=torch.int64))
    assert got.shape == (0,)
    got.sum().backward()
    assert logits.grad.shape == (0, 5)


@pytest.mark.parametrize("function", BUILT_IN)
def test_a_lazily_negated_tensor(function: Any) -> None:
    given = cast(inputs(4), "torch float32")
    negated = {k: x if k == "targets" else torch._neg_view(-x) for k, x in given.items()}
    np.testing.assert_array_equal(function(**negated), function(**given))


@pytest.mark.parametrize("kind", ["numpy float32", "torch float32", "torch bfloat16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", BUILT_IN)
def test_not_finite_where_torch_computes(function: Any, kind: str, bad: float) -> None:
    """As on a device: in tensors of another class, and in those to differentiate."""
    for place in ("student_logits", "teacher_logits"):
        if place == "teacher_logits" and function not in (kcd.kd_divergence, kcd.reducible_loss):
            continue
        given = cast(inputs(5), kind.replace("numpy", "torch"))
        given[place][3, 4] = bad
        others = {k: torchs_own(x) for k, x in given.items()}
        graph = {k: x if k == "targets" else x.clone().requires_grad_() for k, x in given.items()}
        for made in (given, others, graph):
            got = plain(function(**made).detach())
            assert np.isnan(got).tolist() == [False, False, False, True, False]


def test_host_memory_is_bounded_by_a_chunk() -> None:
    """At most 16 MB, half of the logits' own, in whatever precision."""
    with LiveBytes():
        kcd.entropy(torch.zeros(2, 3))  # torch imports much at the first operation that a mode sees
    for library in ("numpy", "torch"):
        for dtype in ("float16", "float32", "bfloat16"):
            if (library, dtype) == ("numpy", "bfloat16"):
                continue
            rows = 2**25 // 1024 // (4 if dtype == "float32" else 2)
            logits: Any = torch.zeros(rows, 1024, dtype=getattr(torch, dtype))
            given = {"teacher_logits": logits, "targets": torch.zeros(rows, dtype=torch.int64)}
            if library == "numpy":
                logits, given = logits.numpy(), {k: x.numpy() for k, x in given.items()}
            for function in BUILT_IN:
                tracemalloc.start()
                with LiveBytes() as live:
                    function(logits, **given)
                peak = tracemalloc.get_traced_memory()[1] + live.most
                tracemalloc.stop()
                assert peak <= 2**24


class LiveBytes(TorchDispatchMode):
    """At least the bytes that torch's operations made at once: those of the largest result, times those alive."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            own = {x.untyped_storage().data_ptr() for x in tree_leaves(args) if isinstance(x, torch.Tensor)}
            if result.untyped_storage().data_ptr() not in own:
                self.most = max(self.most, 4 * result.numel() * result.element_size())
        return result


def test_names() -> None:
    for function in BUILT_IN:
        assert ValueFunction(function.__name__).function is function
        assert ValueFunction(function).function is function
    for wrong in ("entropie", "", None, 3, ["entropy"]):
        with pytest.raises(ValueError, match="value must be 'entropy', "):
            ValueFunction(wrong)
