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
        ([0, 1, 2, 3, 4, -1], IndexError, r"0 \.\. 19"),
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
