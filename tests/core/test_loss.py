"""CondensedLoss: what the criterion would give on the kept samples of the batch alone."""

import io

import numpy as np
import pytest
import torch
from helpers import entropy_of, logits_of, same
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

import kcd_core as kcd

N = 20
SCHEDULE = kcd.CondensationSchedule(ratio=0.5, stages=1, period=1)
KEPT = [0, 2, 3, 5, 8, 9, 13, 14, 17, 19]
INDICES = [3, 4, 5, 6, 9, 3]  # of them, 3, 5, 9 and 3 again are kept
ROWS = [0, 2, 4, 5]


def per_sample(logits, targets):
    return cross_entropy(logits, targets, reduction="none")


def make(reduction="mean", criterion=per_sample, **options):
    tracker = kcd.KnowledgeValueTracker(N, **options)
    loss = kcd.CondensedLoss(criterion, tracker, reduction=reduction)
    loss.install(kcd.CondensedSet(kept=np.array(KEPT), num_samples=N))
    return loss


def batch():
    return logits_of(INDICES, 1).requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_is_the_criterion_on_the_kept_subset(reduction):
    logits, targets = batch()
    value = make(reduction)(logits, targets, indices=INDICES)
    value.sum().backward()
    alone = logits.detach()[ROWS].requires_grad_()
    expected = cross_entropy(alone, targets[ROWS], reduction=reduction)
    expected.sum().backward()
    if reduction == "none":
        assert value.shape == (6,)
        assert value[[1, 3]].tolist() == [0, 0]
        value = value[ROWS]
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(logits.grad[ROWS], alone.grad)
    assert not logits.grad[[1, 3]].any()


def test_everything_is_kept_before_the_first_stage():
    loss = kcd.CondensedLoss(per_sample, kcd.KnowledgeValueTracker(N))
    logits, targets = batch()
    torch.testing.assert_close(loss(logits, targets, indices=INDICES), cross_entropy(logits, targets))
    assert loss.kept.tolist() == list(range(N))
    assert (loss.num_samples, loss.stage) == (N, 0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_kept_is_zero_with_a_gradient_of_zero(reduction):
    logits, targets = batch()
    value = make(reduction)(logits, targets, indices=[1, 4, 6, 7, 10, 11])
    assert not value.any()
    value.sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_infinite_loss_of_a_dropped_sample_is_no_matter(reduction):
    logits, targets = batch()
    expected = make(reduction)(logits, targets, indices=INDICES).detach()

    def infinite(logits, targets):
        losses = per_sample(logits, targets)
        return torch.stack([x if i != 3 else x + float("inf") for i, x in enumerate(losses)])

    value = make(reduction, infinite)(logits, targets, indices=INDICES)
    torch.testing.assert_close(value, expected)
    value.sum().backward()
    assert logits.grad.isfinite().all()


def power(logits, targets):
    return -softmax(logits, 1)[torch.arange(len(targets)), targets].log()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("criterion", [per_sample, power])
@pytest.mark.parametrize("broken", [float("inf"), float("nan"), [1e30, 0, 0, 0, -1e30]])
def test_what_is_not_finite_in_a_dropped_sample_has_no_gradient(broken, criterion, reduction):
    """Infinite logits, or an infinite loss of finite ones: the student learns what it does without that sample."""
    inputs, targets = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), batch()[1]
    loss = make(reduction, criterion, on_nonfinite="skip")
    grads = []
    for rows in (range(6), ROWS):
        student = torch.nn.Linear(4, 5)
        torch.nn.init.constant_(student.weight, 0.1)
        torch.nn.init.zeros_(student.bias)
        logits = student(inputs[list(rows)])
        if len(rows) == 6:
            shift = torch.zeros(6, 5)
            shift[[1, 3]] = torch.tensor(broken)  # targets 1 and 3 are dropped
            shift[[1, 3], targets[[1, 3]]] = -1e30
            logits = logits + shift
        loss(
            logits, targets[list(rows)], indices=np.array(INDICES)[list(rows)], record=False
        ).sum().backward()
        grads.append([parameter.grad for parameter in student.parameters()])
    for with_broken, without in zip(*grads, strict=True):
        torch.testing.assert_close(with_broken, without)


def test_a_dropped_sample_is_a_constant_to_the_others():
    """A criterion that compares the samples of a batch sees all of them."""

    def contrast(logits):
        return -log_softmax(logits @ logits.T, 1).diagonal()

    logits = logits_of(INDICES, 1).requires_grad_()
    value = make(criterion=contrast)(logits, indices=INDICES)
    torch.testing.assert_close(value, contrast(logits)[ROWS].mean())
    value.backward()
    assert logits.grad[ROWS].any(1).all()
    assert not logits.grad[[1, 3]].any()


def test_other_arguments_go_to_the_criterion():
    def kd(student, teacher, *, temperature):
        log_s, t = log_softmax(student / temperature, 1), softmax(teacher / temperature, 1)
        return kl_div(log_s, t, reduction="none").sum(1) * temperature**2

    logits, _ = batch()
    teacher = logits_of(INDICES, 9)
    value = make(criterion=kd)(logits, teacher, temperature=4.0, indices=INDICES)
    torch.testing.assert_close(value, kd(logits, teacher, temperature=4.0)[ROWS].mean())


@pytest.mark.parametrize(
    ("criterion", "shape"),
    [
        (torch.nn.CrossEntropyLoss(), r"\(\)"),
        (lambda logits, targets: logits, r"\(6, 5\)"),
        (lambda logits, targets: logits[1:, 0], r"\(5,\)"),
        (lambda logits, targets: 0.5, "float"),
    ],
)
def test_a_criterion_that_reduces_is_refused(criterion, shape):
    loss = make(criterion=criterion)
    logits, targets = batch()
    with pytest.raises(TypeError, match=rf"one loss per sample, shape \(6,\), got {shape}.*reduction='none'"):
        loss(logits, targets, indices=INDICES)
    assert loss.tracker.count.sum() == 0


def test_records_in_training_mode_only():
    loss = make()
    logits, targets = batch()
    loss.eval()
    quiet = loss(logits, targets, indices=INDICES)
    assert loss.tracker.count.sum() == 0
    loss.train()
    torch.testing.assert_close(loss(logits, targets, indices=torch.tensor(INDICES)), quiet)
    assert loss.tracker.count.tolist() == [INDICES.count(i) for i in range(N)]  # dropped ones, too
    values = entropy_of(logits.detach())
    for i in (4, 5, 6, 9):
        assert loss.tracker.value[i] == pytest.approx(values[INDICES.index(i)], abs=1e-6)
    assert loss.tracker.value[3] == pytest.approx(values[[0, 5]].mean(), abs=1e-6)


def test_records_where_gradients_are_enabled_alone():
    """Evaluation by somebody else's loop, which doesn't know that the loss is a module."""
    loss = make()
    logits, targets = batch()
    for quiet in (torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)):
        with quiet():
            loss(logits.detach(), targets, indices=INDICES)
    assert not loss.tracker.count.any()
    loss(logits.detach(), targets, indices=INDICES)  # a student whose logits need no gradient
    assert loss.tracker.count.sum() == len(INDICES)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("record", [True, False])
def test_recording_may_be_asked_for(record, enabled, training):
    loss = make().train(training)
    logits, targets = batch()
    with torch.set_grad_enabled(enabled):
        value = loss(logits, targets, indices=INDICES, record=record)
    assert loss.tracker.count.sum() == record * len(INDICES)
    torch.testing.assert_close(value, cross_entropy(logits[ROWS], targets[ROWS]))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("pad", [[0], [2, 5], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("held", [list, np.array, torch.tensor])
def test_padding_neither_counts_nor_is_recorded(held, pad, reduction):
    padded, alone = make(reduction, value="cross_entropy"), make(reduction, value="cross_entropy")
    logits, targets = batch()
    rest = [i for i in range(6) if i not in pad]
    indices = [-1 if i in pad else index for i, index in enumerate(INDICES)]
    value = padded(logits, targets, indices=held(indices), targets=targets)
    own = logits.detach()[rest].requires_grad_()
    given = held([INDICES[i] for i in rest])
    expected = alone(own, targets[rest], indices=given, targets=targets[rest])
    if reduction == "none":
        assert not value[pad].any()
        value = value[rest]
    torch.testing.assert_close(value, expected)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logits.grad[rest], own.grad)
    assert not logits.grad[pad].any()
    assert same(padded.tracker.state_dict(), alone.tracker.state_dict())


def test_what_the_value_needs_goes_to_the_tracker_alone():
    loss = make(value="cross_entropy")
    logits, targets = batch()
    loss(logits, targets, indices=INDICES, targets=targets)
    expected = per_sample(logits, targets)
    assert loss.tracker.value[4] == pytest.approx(expected[1].item(), abs=1e-6)
    with pytest.raises(ValueError, match="targets"):
        loss(logits, targets, indices=INDICES)
    loss = make(value="kd_divergence")
    with pytest.raises(ValueError, match=r"needs teacher_logits=: .* the CondensedLoss call"):
        loss(logits, targets, indices=INDICES)


@pytest.mark.parametrize("settings", [{"weight": torch.tensor([1.0, 2, 3, 4, 5])}, {"ignore_index": 0}])
def test_the_mean_is_that_of_the_losses_not_a_weighted_one(settings):
    logits, targets = batch()
    value = make(criterion=torch.nn.CrossEntropyLoss(reduction="none", **settings))(
        logits, targets, indices=INDICES
    )
    losses = cross_entropy(logits, targets, reduction="none", **settings)
    torch.testing.assert_close(value, losses[ROWS].sum() / len(ROWS))
    assert not torch.isclose(value, cross_entropy(logits[ROWS], targets[ROWS], **settings))
    both = make("sum", torch.nn.CrossEntropyLoss(reduction="none", **settings))(
        logits, targets, indices=INDICES
    )
    torch.testing.assert_close(both, cross_entropy(logits[ROWS], targets[ROWS], reduction="sum", **settings))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("indices", [[], (), np.array([]), torch.tensor([])])
def test_an_empty_batch(indices, reduction, training):
    loss = make(reduction).train(training)
    logits = torch.zeros(0, 5, requires_grad=True)
    value = loss(logits, torch.zeros(0, dtype=torch.int64), indices=indices)
    assert value.shape == ((0,) if reduction == "none" else ())
    value.sum().backward()
    assert value.sum() == 0
    with pytest.raises(ValueError, match=r"one length|one index per sample"):
        loss(*batch(), indices=indices)


def test_condense_step_installs():
    loss = kcd.CondensedLoss(per_sample, kcd.KnowledgeValueTracker(N))
    targets = batch()[1]
    for _ in range(2):
        for first in range(0, N, 5):
            indices = np.arange(first, first + 5)
            loss(logits_of(indices, 1), targets[:5], indices=indices)
        chosen = kcd.condense_step(loss.tracker, loss, SCHEDULE)
    order = np.argsort(-entropy_of(logits_of(range(N), 1)), kind="stable")
    assert chosen.kept.tolist() == loss.kept.tolist() == sorted(order[:10].tolist())
    assert chosen.stage == loss.stage == 2
    np.testing.assert_array_equal(loss.keep.nonzero()[:, 0], loss.kept)


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="the set is of 21 samples, this loss of 20"):
        make().install(kcd.CondensedSet(kept=np.array([1]), num_samples=21))


def test_state_round_trip():
    loss = make()
    file = io.BytesIO()
    torch.save({"loss": loss.state_dict(), "tracker": loss.tracker.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    fresh = kcd.CondensedLoss(per_sample, kcd.KnowledgeValueTracker(N))
    fresh.load_state_dict(state["loss"])
    assert fresh.kept.tolist() == KEPT
    assert fresh.stage == 1
    assert same(dict(fresh.state_dict()), dict(loss.state_dict()))
    other = kcd.CondensedLoss(per_sample, kcd.KnowledgeValueTracker(N + 1))
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(state["loss"])


def test_is_part_of_a_module_but_adds_no_parameters():
    module = torch.nn.Sequential(make())
    assert list(module.parameters()) == []
    assert set(module.state_dict()) == {"0.keep", "0.installs"}
    assert set(make(criterion=torch.nn.CrossEntropyLoss(reduction="none")).state_dict()) == {
        "keep",
        "installs",
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("indices", "error", "reason"),
    [
        ([0, 1, 2, 3, 4, N], IndexError, r"0 \.\. 19"),
        ([0, 1, 2, 3, 4, -2], IndexError, r"0 \.\. 19, or be -1 for padding"),
        ([0.0, 1, 2, 3, 4, 5], TypeError, "integers"),
        (torch.ones(6, dtype=torch.bool), TypeError, "integers"),
        ([0], ValueError, "one length|one index per sample"),
        (list(range(7)), ValueError, "one length|one index per sample"),
        ([[0, 1, 2, 3, 4, 5]], ValueError, r"\[B\]|one index per sample"),
    ],
)
def test_wrong_indices(indices, error, reason, training):
    loss = make().train(training)
    logits, targets = batch()
    with pytest.raises(error, match=reason):
        loss(logits, targets, indices=indices)
    assert loss.tracker.count.sum() == 0


def test_wrong_reduction():
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'max'"):
        make("max")


def test_half_precision():
    loss = make()
    logits, targets = batch()
    value = loss(logits.detach().bfloat16(), targets, indices=INDICES)
    assert value.dtype == torch.bfloat16
    assert loss.tracker.count.sum() == 6
