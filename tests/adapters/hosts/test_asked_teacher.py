"""Which calls of a teacher are the host's for a batch, what is made of them, and what is refused; in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("torch")

import torch
from test_engine import PROFILE
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from kcd_adapters.hosts.asked_teacher import AskedTeacher
from kcd_adapters.hosts.engine import Engine
from kcd_adapters.hosts.standin import labels_as_logits
from kcd_adapters.profiles import Loss, Pair, Teacher
from kcd_adapters.settings import Settings

N, CLASSES, BATCH = 60, 3, 8
HINTON = Loss(0.1, 0.9, 4)
CHECKPOINT = {"optimizer": {}, "epoch": 1}


def gives_logits(features: Any, logits: Any) -> Any:
    return logits


class Model(torch.nn.Module):
    """A teacher that remembers which samples it was called with, and gives what ``gives(features, logits)`` makes."""

    def __init__(self, gives: Callable[..., Any] = gives_logits) -> None:
        super().__init__()
        self.given: list[list[int]] = []
        self.gives, self.dropout = gives, torch.nn.Dropout()

    def forward(self, images: Any, **_: Any) -> Any:
        self.given.append(images[:, 0].int().tolist())
        return self.gives(images.repeat(1, 4), self.says(images))

    @staticmethod
    def says(images: Any) -> Any:
        i = images[:, :1]
        return torch.cat([i, i.square() / N, torch.sin(i)], 1)


def labels_of(images: Any) -> Any:
    return images[:, 0].long() % CLASSES


class Student(torch.nn.Module):
    """Surer of the first class, the lower a sample's number."""

    def __init__(self, gives: Callable[..., Any]) -> None:
        super().__init__()
        self.gives = gives
        self.weight = torch.nn.Parameter(torch.eye(CLASSES)[:1])

    def forward(self, images: Any) -> Any:
        return self.gives(images.repeat(1, 4), (N - images[:, :1]) / 10 @ self.weight)


class Batch(NamedTuple):
    images: Any
    student: Any  # logits
    told: Any  # what the teacher returned


class Host:
    """A loop of somebody's, with a student and a teacher."""

    def __init__(
        self,
        gives: Callable[..., Any] = gives_logits,
        logits: tuple[Any, ...] = (),
        loss: Loss = HINTON,
        **settings: Any,
    ) -> None:
        self.student, self.teacher, self.path = Student(gives), Model(gives).eval(), logits
        given = Teacher("mini.train", lambda *pair: Pair(*pair, loss), logits=logits)
        profile = replace(PROFILE, teacher=given)
        self.engine = Engine(Settings(ratio=1, **{"ask": 0.25, **settings}), profile, [])
        self.engine.teacher = self.asked = AskedTeacher(given, self.engine.followed)
        self.engine.before_batch(self.asked.before_batch)
        data = TensorDataset(torch.arange(N).float().unsqueeze(1).repeat(1, 2), torch.arange(N) % CLASSES)
        self.loader = DataLoader(data, batch_size=BATCH, shuffle=True)

    def batches(self) -> Iterator[Any]:
        self.asked.meet(self.student, self.teacher)
        hosted = self.engine.hosted(self.loader)
        assert hosted is not None
        return self.engine.start(hosted)

    def step(self, images: Any, labels: Any, call: Callable[[Any], Any] | None = None) -> Batch:
        output = self.student(images)
        told = (call or self.call)(images)
        for key in self.path:
            output = output[key]
        self.engine.observe(output, labels)
        return Batch(images, output, told)

    def epoch(self, call: Callable[[Any], Any] | None = None) -> list[Batch]:
        return [self.step(images, labels, call) for images, labels in self.batches()]

    def call(self, images: Any) -> Any:
        with torch.no_grad():
            return self.teacher(images)


def check(batch: Batch, given: list[int], logits: Any = None) -> None:
    """Whether a batch has the teacher's logits in the rows that it was ``given``, and the label's in the others."""
    logits = batch.told if logits is None else logits
    rows = torch.tensor([int(i) in given for i in batch.images[:, 0]])
    torch.testing.assert_close(logits[rows], Model.says(batch.images)[rows])
    z, label = batch.student.detach().double(), labels_of(batch.images)
    wanted = (z / 4).softmax(1) - 0.25 * (z.softmax(1) - torch.eye(CLASSES)[label])
    wanted = wanted.clamp(min=1e-9)
    wanted = wanted / wanted.sum(1, keepdim=True)
    torch.testing.assert_close((logits / 4).softmax(1).double()[~rows], wanted[~rows], rtol=1e-4, atol=1e-5)


TOP = set(range(N - 15, N))  # after the first epoch: 15 of 60


def test_it_is_asked_for_the_highest_values_and_the_label_stands_in_for_it() -> None:
    host = Host()
    for batch in host.epoch():
        torch.testing.assert_close(batch.told, Model.says(batch.images))
    assert sum(map(len, host.teacher.given)) == N
    host.teacher.given.clear()
    for _ in range(2):
        for batch in host.epoch():
            numbers = batch.images[:, 0].int().tolist()
            given = host.teacher.given.pop(0)
            check(batch, given)
            assert given == [i for i in numbers if i in given]
            top = [i for i in numbers if i in TOP]
            assert set(top) <= set(given)
            assert len(given) == max(2, len(top))


@pytest.mark.parametrize("multiple", [4, 8])
def test_the_number_of_rows_is_rounded_up(multiple: int) -> None:
    host = Host(ask_multiple=multiple)
    host.epoch()
    host.teacher.given.clear()
    sizes = [len(batch.images) for batch in host.epoch()]
    for given, size in zip(host.teacher.given, sizes, strict=True):
        assert len(given) % multiple == 0 or len(given) == size


def test_what_is_not_logits_is_nan() -> None:
    host = Host(lambda features, logits: {"maps": [features, None], "logits": logits}, ("logits",))
    for batch in host.epoch():
        assert torch.isfinite(batch.told["maps"][0]).all()
    host.teacher.given.clear()
    for batch in host.epoch():
        check(batch, host.teacher.given.pop(0), batch.told["logits"])
        assert batch.told["maps"][0].isnan().all()
        assert batch.told["maps"][0].shape == (len(batch.images), 8)
        assert batch.told["maps"][1] is None


def test_the_logits_have_the_teachers_type() -> None:
    host = Host(lambda features, logits: (features, logits.bfloat16()), (1,))
    host.epoch()
    assert {batch.told[1].dtype for batch in host.epoch()} == {torch.bfloat16}


def test_other_calls_are_left_alone() -> None:
    host = Host()
    host.epoch()
    host.epoch()
    some = torch.arange(BATCH).float().unsqueeze(1).repeat(1, 2)
    torch.testing.assert_close(host.call(some), Model.says(some))  # between two epochs
    for place, (images, labels) in enumerate(host.batches()):
        host.step(images, labels)
        if place == 3:  # in the middle of one
            torch.testing.assert_close(host.call(some), Model.says(some))
    assert len(Model().eval()(some)) == BATCH


def test_a_host_that_fetches_ahead() -> None:
    host = Host()
    for epoch in range(3):
        waiting = None
        for drawn in itertools.chain(host.batches(), [None]):
            if waiting is not None:
                batch = host.step(*waiting)
                check(batch, host.teacher.given[-1])
                assert epoch == 0 or len(host.teacher.given[-1]) < BATCH
            waiting = drawn


def views(host: Host, images: Any) -> Any:
    return host.call(torch.cat([images, images]))


def twice(host: Host, images: Any) -> Any:
    return host.call(images), host.call(images)


def flipped(host: Host, images: Any) -> Any:
    return host.call(images.flip(0))


def training(host: Host, images: Any) -> Any:
    host.teacher.dropout.train()
    return host.call(images)


def in_training(host: Host, images: Any) -> Any:
    host.teacher.train()
    return host.call(images)


def with_gradient(host: Host, images: Any) -> Any:
    return host.teacher(images.clone().requires_grad_())


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (views, "called with 16 rows for a batch of 8"),
        (twice, "called twice for one batch"),
        (flipped, "not given the images as the loader yields them"),
        (training, r"the teacher \(Model\) is in training mode"),
        (with_gradient, "called with gradients"),
    ],
    ids=["views", "twice", "flipped", "training", "gradient"],
)
def test_calls_that_a_part_can_not_be_taken_of_stop_the_run(call: Any, error: str) -> None:
    host = Host()
    with pytest.raises(RuntimeError, match=error):
        host.epoch(lambda images: call(host, images))
    assert [len(given) for given in host.teacher.given] in ([BATCH], [2 * BATCH])  # in the first batch


@pytest.mark.parametrize(
    ("call", "error"),
    [(views, "16 rows for a batch of 8"), (training, "in training mode"), (in_training, "in training mode")],
    ids=["views", "part", "training"],
)
def test_they_stop_it_in_a_later_epoch(call: Any, error: str) -> None:
    host = Host()
    host.epoch()
    host.teacher.given.clear()
    with pytest.raises(RuntimeError, match=error):
        host.epoch(lambda images: call(host, images))
    assert host.teacher.given == []  # at the call


def test_a_teacher_before_its_student_stops_the_run() -> None:
    host = Host()
    images, labels = next(host.batches())
    host.call(images)
    with pytest.raises(RuntimeError, match=r"the student, whose logits stand in .* was not called before it"):
        host.engine.observe(host.student(images), labels)


def test_a_student_that_is_called_twice_stops_the_run() -> None:
    host = Host()
    images, _ = next(host.batches())
    host.student(images / 2)
    batch = host.student(images)
    host.call(images)
    with pytest.raises(RuntimeError, match="the student was called 2 times for one batch"):
        host.engine.observe(batch, labels_of(images))


def test_a_teacher_of_a_class_that_extends_the_students() -> None:
    class Taught(Model):
        def __init__(self) -> None:
            super().__init__()
            self.student = Student(gives_logits)

        def forward(self, images: Any, **_: Any) -> Any:
            return self.student.forward(images)

    class Teaching(Taught):
        def forward(self, images: Any, **_: Any) -> Any:
            return Model.forward(self, images)

    host = Host()
    host.student, host.teacher = Taught(), Teaching().eval()  # type: ignore[assignment]
    host.epoch()
    host.teacher.given.clear()
    for batch in host.epoch():
        check(batch, host.teacher.given.pop(0))
    assert not host.teacher.given


@pytest.mark.parametrize(
    ("gives", "error"),
    [
        (lambda features, logits: (features, logits.argmax(1)), r"returns torch.int64 \[8\] at 1 for 8 samples"),
        (lambda features, logits: (features.mean(0)[:5], logits), r"returns torch.float32 \[5\] at 0 for 8 samples"),
        (lambda features, logits: (features.mean(), logits), r"returns torch.float32 \[\] at 0 for 8 samples"),
        (lambda features, logits: (1.0, logits), "returns float at 0 for 8 samples"),
        (lambda features, logits: (features, logits[:, 0]), r"does not return logits \[B, C\] at 1"),
        (lambda features, logits: logits, r"does not return logits \[B, C\] at 1"),
    ],
    ids=["integers", "mean-row", "mean", "number", "vector", "alone"],
)  # fmt: skip
def test_what_is_not_of_each_sample_stops_the_run(gives: Any, error: str) -> None:
    host = Host(lambda features, logits: (features, logits), (1,))
    host.teacher.gives = gives
    with pytest.raises(RuntimeError, match=error):
        host.epoch()


def test_a_teacher_that_is_not_called_stops_the_run() -> None:
    host = Host()
    host.epoch()
    host.epoch(lambda images: None)
    with pytest.raises(
        RuntimeError, match=r"in a whole epoch.*mini\.train was given as the teacher was not called"
    ):
        host.epoch()


def test_a_second_teacher_stops_the_run() -> None:
    host = Host()
    host.epoch()
    with pytest.raises(
        RuntimeError, match=r"--ask is for one teacher, and mini\.train was given another Model"
    ):
        host.asked.meet(host.student, Model())


def test_a_call_for_another_batch_stops_the_run() -> None:
    host = Host()
    host.epoch()
    batches = host.batches()
    first, second = next(batches), next(batches)
    host.student(second[0])
    host.call(second[0])
    with pytest.raises(RuntimeError, match="called for another batch"):
        host.engine.observe(host.student(first[0]), first[1])


def test_a_resumed_run_goes_on_asking(tmp_path: Path) -> None:
    path = tmp_path / "latest"
    first, second = Host(), Host()
    first.epoch()
    path.write_bytes(b"the host's")
    first.engine.host_saved(None, CHECKPOINT, path)
    second.engine.host_loaded(CHECKPOINT, path)
    batches = second.epoch()
    assert len(second.teacher.given[0]) == BATCH  # not before it is known how far the host fetches ahead
    assert {i for given in second.teacher.given for i in given} >= TOP
    for batch, given in zip(batches, second.teacher.given, strict=True):
        check(batch, given)
    second.epoch()
    assert second.engine.journal.asked == N + sum(map(len, second.teacher.given[:8]))
    with pytest.raises(ValueError, match=r"saved with ask = 0\.25, here it is 0\.5"):
        Host(ask=0.5).engine.host_loaded(CHECKPOINT, path)


# -- the stand-in --------------------------------------------------------------------------------------


def distilled(
    student: Any, teacher: Any, labels: float = 0.1, weight: float = 0.9, temperature: float = 4
) -> Any:
    """Of each row, what a host's loss adds to that of its labels."""
    p, q = ((logits / temperature).log_softmax(1) for logits in (student, teacher))
    return weight * temperature**2 * (q.exp() * (q - p)).sum(1)


@pytest.mark.parametrize(
    ("labels", "weight", "temperature"), [(0.1, 0.9, 4), (0.5, 0.5, 2), (0, 1, 1), (1, 0.9, 4), (1, 3, None)]
)
def test_a_row_that_is_not_asked_has_the_gradient_of_its_label(
    labels: float, weight: float, temperature: float | None
) -> None:
    student = torch.randn(50, 5, dtype=torch.float64, generator=torch.manual_seed(0)).requires_grad_()
    target = torch.arange(50) % 5
    loss = Loss(labels, weight, temperature)
    given = labels_as_logits(student, target, loss).double()
    assert not given.requires_grad
    of_labels = cross_entropy(student, target, reduction="none")
    both = labels * of_labels + distilled(student, given, weight=weight, temperature=temperature or 1)
    (found,) = torch.autograd.grad(both.sum(), student, retain_graph=True)
    (expected,) = torch.autograd.grad(of_labels.sum(), student)
    p = student.detach()
    wanted = (p / (temperature or 1)).softmax(1) - loss.share * (p.softmax(1) - torch.eye(5)[target])
    whole = (wanted >= 0).all(1)
    assert whole.sum() > 25
    torch.testing.assert_close(found[whole], expected[whole], rtol=1e-4, atol=1e-5)
    # Elsewhere, it points the same way.
    assert (torch.nn.functional.cosine_similarity(found, expected) > 0.8).all()


@pytest.mark.parametrize(
    ("loss", "error"),
    [
        (
            Loss(0.1, 0.1, 4),
            "0.1 for the labels, 0.1 for the teacher at temperature 4, which can't be made that",
        ),
        (Loss(2, 0.9, 4), "2 for the labels, 0.9 for the teacher at temperature 4"),
        (Loss(0.1, 0, 4), "0.1 for the labels, 0 for the teacher"),
        (Loss(0.5, 8), "0.5 for the labels, 8 for the teacher, which can't"),
    ],
    ids=["reach", "more", "alone", "other"],
)
def test_weights_that_can_not_be_made_up_stop_the_run(loss: Loss, error: str) -> None:
    with pytest.raises(RuntimeError, match=error):
        Host(loss=loss).epoch()


@pytest.mark.parametrize("scale", [1, 1024])
@pytest.mark.parametrize(
    ("smoothing", "weight"), [(0, 0.9), (0.5, 0.9), (0, 0.3)], ids=["as-told", "smoothed", "weighed"]
)
def test_the_gradient_is_looked_at(smoothing: float, weight: float, scale: float) -> None:
    host = Host()
    host.epoch()

    def train() -> None:
        for images, labels in host.batches():
            batch = host.step(images, labels)
            loss = 0.1 * cross_entropy(batch.student, labels, label_smoothing=smoothing)
            (scale * (loss + distilled(batch.student, batch.told, weight=weight).mean())).backward()

    if (smoothing, weight) == (0, 0.9):
        train()
        train()
    else:
        with pytest.raises(
            RuntimeError, match="the gradient of this loss is not that of its profile's formula"
        ):
            train()
