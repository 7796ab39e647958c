"""Hugging Face's Trainer: steps, values, orders and checkpoints are those of the condensed set."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed: run make test-trainers")

import torch
from common import Samples, Student, expected_sets, on_ranks, summed
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import kcd_core as kcd
from kcd_adapters.trainers.transformers import INDICES, KCDTrainerMixin

N, BATCH, EPOCHS, ACCUMULATE = 203, 16, 5, 2
SCHEDULE = kcd.CondensationSchedule(ratio=0.4, stages=3, period=1)
SIZES = [203, 163, 123, 83, 81]
#: Steps in the epochs, by the number of ranks.
STEPS = {1: [7, 6, 4, 3, 3], 2: [4, 3, 2, 2, 2]}
FIVE = hasattr(Trainer, "_run_epoch")  # else 4.57


class Noisy(Samples):
    """Augments with numbers of the global generator."""

    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        sample["x"][1:] += 0.01 * torch.randn(len(sample["x"]) - 1)
        return {**sample, "unused": "a column that the model doesn't take"}


class Model(Student):
    """As those of transformers: takes the labels, and returns a dict."""

    config = SimpleNamespace(problem_type=None)

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Dropout(0.1), self.layer)  # type: ignore[assignment]

    def forward(self, x: torch.Tensor, labels: Any = None, **settings: Any) -> Any:
        logits = super().forward(x)
        loss = {} if labels is None else {"loss": torch.nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


class Marks(TrainerCallback):  # type: ignore[misc]
    """Begins a new list of what was drawn and read with each epoch."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        model.new_epoch()
        model.drawn.append([])


class Distil(KCDTrainerMixin, Trainer):  # type: ignore[misc]
    """Its own reading is in ``model.read``; ``model.drawn`` holds the indices of each batch. Both by epoch."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        assert INDICES not in inputs
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        self.kcd_record(outputs["logits"])
        if self.kcd_indices is not None:
            self.model.drawn[-1].append(self.kcd_indices.tolist())
            self.items.append(num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def flat(lists: Any) -> list[Any]:
    return [one for some in lists for one in some]


def arguments(folder: Any, **settings: Any) -> Any:
    ours = {
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATE,
        "num_train_epochs": EPOCHS,
        "learning_rate": 0.01,
        "weight_decay": 0.01,
        "logging_steps": 3,
        "save_strategy": "no",
        "label_names": ["labels"],
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    if "WORLD_SIZE" in os.environ:
        ours["ddp_backend"] = "gloo"
    args = TrainingArguments(output_dir=str(folder), **{**ours, **settings})
    if "WORLD_SIZE" in os.environ:
        assert args.device.type == "cpu"
        args.__dict__["_setup_devices"] = torch.device("cpu")  # 4.57 can't load an optimizer onto "cpu:0"
    return args


def made(folder: Any, *, of: Any = Distil, data: Any = None, also: Any = (), **settings: Any) -> Any:
    model = Model()
    model.drawn = [[]]  # type: ignore[assignment]
    more = {"kcd_schedule": SCHEDULE} if issubclass(of, KCDTrainerMixin) else {}
    trainer = of(
        model=model,
        args=arguments(folder, **settings),
        train_dataset=Noisy(N, dicts=True) if data is None else data,
        eval_dataset=Samples(50, dicts=True),
        callbacks=[Marks()],
        **{**more, **dict(also)},
    )
    trainer.items = []
    return trainer


def result(trainer: Any) -> dict[str, Any]:
    """What is the same in a run that was not interrupted."""
    loader, state = trainer.kcd_loader, trainer.state
    model = trainer.model
    return {
        "weights": [p.detach().clone() for p in model.parameters()],
        "value": np.array(loader.tracker.value),
        "count": np.array(loader.tracker.count),
        "kept": loader.sampler.kept,
        "rates": trainer.lr_scheduler.get_last_lr(),
        "state": (state.global_step, state.max_steps, state.epoch, state.num_train_epochs, loader.epoch),
        "logs": [log for log in state.log_history if "kcd/kept" in log],
        "progress": {log["step"]: log["epoch"] for log in state.log_history},
    }


def own_reading(model: Any) -> list[list[tuple[int, float]]]:
    """(index, entropy) by epoch, what only pads left out."""
    return [
        [pair for pair, index in zip(read, flat(drawn), strict=True) if index >= 0]
        for read, drawn in zip(model.read, model.drawn, strict=True)
    ]


def places(world: int) -> dict[str, int]:
    """Steps after which a run is resumed."""
    first, second = STEPS[world][:2]
    return {"begin": 2, "last of one": first, "middle": first + 1, "last of two": first + second}


def everything(folder: Path) -> dict[str, Any]:
    """A whole run, and those that go on from its checkpoints."""
    whole = made(folder / "whole", save_strategy="steps", save_steps=1)
    whole.train()
    found = {"whole": result(whole), "read": own_reading(whole.model), "drawn": whole.model.drawn}
    steps = places(whole.args.world_size)
    again = made(folder / "epochs", save_strategy="epoch", save_total_limit=EPOCHS - 1)
    again.train()
    found["saved by epochs"] = result(again), again.model.drawn
    ways: dict[str, Any] = {name: (folder / f"whole/checkpoint-{step}", {}) for name, step in steps.items()}
    ways["end of two"] = (folder / f"epochs/checkpoint-{steps['last of two']}", {"ignore_data_skip": True})
    for name, (checkpoint, settings) in ways.items():
        then = made(folder / "then", seed=42, **settings)
        then.train(resume_from_checkpoint=str(checkpoint))
        found[name] = result(then), then.model.drawn
    if whole.args.world_size > 1:
        with pytest.raises(RuntimeError, match="num_replicas"):
            made(folder / "plain", of=Plain).train()
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: Any) -> list[Any]:
    return [everything(tmp_path_factory.mktemp("alone"))]


@pytest.fixture(scope="module")
def folder_of_two(tmp_path_factory: Any) -> Any:
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def together(folder_of_two: Any) -> list[Any]:
    return on_ranks(everything, folder_of_two)


@pytest.fixture(params=["alone", "together"])
def ranks(request: Any) -> Any:
    return request.getfixturevalue(request.param)


def total(results: list[dict[str, Any]]) -> tuple[Any, Any]:
    """V and F of all ranks."""
    count = sum(one["count"] for one in results)
    return sum(np.nan_to_num(one["value"]) * one["count"] for one in results) / np.maximum(count, 1), count


def test_values_counts_and_sets_are_those_of_an_independent_reading(ranks: list[Any]) -> None:
    read = [[pair for rank in ranks for pair in rank["read"][epoch]] for epoch in range(EPOCHS)]
    assert [len(epoch) for epoch in read] == SIZES
    assert all(len({index for index, _ in epoch}) == len(epoch) for epoch in read)
    expected, times = summed([pair for epoch in read for pair in epoch], N)
    value, count = total([rank["whole"] for rank in ranks])
    assert np.array_equal(count, times)
    np.testing.assert_allclose(value, expected, atol=3e-7)
    sets = expected_sets(read, N, SCHEDULE)
    for rank in ranks:
        assert np.array_equal(rank["whole"]["kept"], sets[-1])
        assert [log["kcd/kept"] for log in rank["whole"]["logs"]] == [*map(len, sets)]


def test_steps_progress_and_learning_rate_are_exact(ranks: list[Any]) -> None:
    steps = STEPS[len(ranks)]
    for rank in ranks:
        assert rank["whole"]["state"] == (sum(steps), sum(steps), EPOCHS, EPOCHS, EPOCHS + 1)
        assert set(rank["whole"]["rates"]) == {0.0}
        by_epoch = [-(-len(batches) // ACCUMULATE) for batches in rank["drawn"]]
        assert by_epoch == [*steps, 0]
        logs = rank["whole"]["logs"]
        assert [log["epoch"] for log in logs] == [1, 2, 3, 4, 5]
        assert [log["step"] for log in logs] == np.cumsum(steps).tolist()
        saved = [1 - sum(SIZES[:done]) / (N * done) for done in range(1, EPOCHS + 1)]
        assert [log["kcd/saved"] for log in logs] == pytest.approx(saved)
        assert all(log["kcd/cut"] > 0 for log in logs)


def test_what_only_pads_is_drawn_and_not_recorded(ranks: list[Any]) -> None:
    drawn = [index for rank in ranks for epoch in rank["drawn"] for batch in epoch for index in batch]
    assert len(drawn) == sum(SIZES) + drawn.count(-1)
    assert drawn.count(-1) == 5 * (len(ranks) - 1)


@pytest.mark.parametrize("way", [*places(1), "end of two", "saved by epochs"])
def test_a_run_goes_on_to_the_bit(ranks: list[Any], way: str) -> None:
    value, count = total([rank[way][0] for rank in ranks])
    expected, times = total([rank["whole"] for rank in ranks])
    assert np.array_equal(count, times)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for rank in ranks:
        (then, drawn), whole = rank[way], rank["whole"]
        assert all(map(torch.equal, then["weights"], whole["weights"]))
        assert np.array_equal(then["kept"], whole["kept"])
        for name in ("rates", "state", "logs", "progress"):
            assert then[name] == whole[name]
        batches, all_batches = flat(drawn), flat(rank["drawn"])
        assert batches == all_batches[-len(batches) :]


def test_a_run_of_two_ranks_goes_on_on_one(together: list[Any], folder_of_two: Path, tmp_path: Path) -> None:
    step = places(2)["middle"]
    then = made(tmp_path)
    then.train(resume_from_checkpoint=str(folder_of_two / f"whole/checkpoint-{step}"))
    _, times = total([rank["whole"] for rank in together])
    assert np.array_equal(np.array(then.kcd_loader.tracker.count).sum(), times.sum())
    left = (
        -(-(163 - 2 * 2 * BATCH) // BATCH) + 8 + 6 + 6
    )  # batches: of epoch 2, of which 64 samples were drawn
    assert len(flat(then.model.drawn)) == left
    steps = step + 4 + 4 + 3 + 3
    assert (then.state.global_step, then.state.max_steps, then.state.epoch) == (steps, steps, EPOCHS)
    assert set(then.lr_scheduler.get_last_lr()) == {0.0}


# -- lengths that are given otherwise ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "steps", "epoch", "epochs", "ended"),
    [
        ({"max_steps": 9}, 9, 1 + 4 / 11, 2, 1),
        ({"max_steps": 13}, 13, 2, 2, 2),
        ({"num_train_epochs": 2.5}, 15, 2.5, 3, 2),
        ({"num_train_epochs": 0.1}, 1, 2 / 13, 1, 0),
    ],
)
def test_runs_that_end_within_an_epoch(
    tmp_path: Path, settings: Any, steps: int, epoch: float, epochs: int, ended: int
) -> None:
    run = made(tmp_path, save_strategy="steps", **settings)
    run.train()
    assert (run.state.global_step, run.state.max_steps, run.state.num_train_epochs) == (steps, steps, epochs)
    assert run.state.epoch == pytest.approx(epoch)
    assert set(run.lr_scheduler.get_last_lr()) == {0.0}
    assert (run.kcd_loader.epoch, len(run.kcd_loader.history)) == (1 + ended, ended)
    again = made(tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{steps}"))
    assert again.model.drawn == [[]]
    further = made(tmp_path / "further")
    further.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{steps}"))
    assert (further.state.global_step, further.state.epoch) == (sum(STEPS[1]), EPOCHS)
    assert [len(flat(epoch)) for epoch in further.model.drawn][-3:-1] == SIZES[-2:]


def test_no_epoch_at_all(tmp_path: Path) -> None:
    run = made(tmp_path, num_train_epochs=0)
    run.train()
    assert (run.state.global_step, run.model.drawn) == (0, [[]])


class StopsEpochs(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        control.should_epoch_stop = state.global_step in (2, 4)
        control.should_training_stop = state.global_step == 6


def test_an_epoch_that_is_stopped_is_ended_and_one_in_which_the_run_stops_is_not(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.add_callback(StopsEpochs())
    run.train()
    assert [len(epoch) for epoch in run.model.drawn] == [4, 4, 4, 0]
    assert (run.kcd_loader.epoch, len(run.kcd_loader.history)) == (3, 2)


# -- evaluation, losses, checkpoints -----------------------------------------------------------------------


def checked(run: Any) -> None:
    """A whole run whose values are those of its own reading."""
    run.train()
    value, count = summed([pair for epoch in own_reading(run.model) for pair in epoch], N)
    assert np.array_equal(np.array(run.kcd_loader.tracker.count), count)
    np.testing.assert_allclose(np.array(run.kcd_loader.tracker.value), value, atol=3e-7)
    assert run.state.epoch == EPOCHS


def test_evaluation_and_prediction_are_not_recorded_and_the_best_model_is_loaded(tmp_path: Path) -> None:
    run = made(
        tmp_path,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
    )
    checked(run)
    for name in ("eval_loss", "loss"):  # neither is lost beside what the mixin logs
        assert [log["epoch"] for log in run.state.log_history if name in log] == [1, 2, 3, 4, 5]
    before = run.kcd_loader.gather_state_dict()
    run.evaluate()
    run.predict(Samples(20, dicts=True))
    assert torch.equal(
        run.kcd_loader.gather_state_dict()[0]["tracker"]["count"], before[0]["tracker"]["count"]
    )
    kept = list(tmp_path.glob("checkpoint-*"))
    assert kept
    assert all((path / "kcd.ckpt").is_file() for path in kept)


def test_label_smoothing(tmp_path: Path) -> None:
    checked(made(tmp_path, label_smoothing_factor=0.1))


def test_a_loss_function_of_ones_own_is_given_the_labels_of_the_group(tmp_path: Path) -> None:
    def mine(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        loss = torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum")
        return loss / num_items_in_batch

    run = made(tmp_path, also={"compute_loss_func": mine})
    checked(run)
    assert [int(items) for items in run.items[:13]] == [2 * BATCH] * 12 + [N % BATCH]


def test_more_than_one_gpu_in_a_process_share_a_batch(tmp_path: Path) -> None:
    args = arguments(tmp_path, per_device_train_batch_size=8)
    args._n_gpu = 2  # nn.DataParallel, which leaves the model as it is where there are none
    model = Model()
    model.drawn = [[]]  # type: ignore[assignment]
    run = Distil(
        model=model,
        args=args,
        train_dataset=Noisy(N, dicts=True),
        callbacks=[Marks()],
        kcd_schedule=SCHEDULE,
    )
    run.items = []
    checked(run)
    assert run.state.global_step == sum(STEPS[1])


def test_workers_and_an_order_of_ones_own(tmp_path: Path) -> None:
    if FIVE:
        run = made(tmp_path, train_sampling_strategy="sequential", dataloader_num_workers=1)
        checked(run)
        assert flat(run.model.drawn[0]) == list(range(N))


def test_the_loader_can_be_asked_for_before_and_a_second_training_begins_anew(tmp_path: Path) -> None:
    run = made(tmp_path, num_train_epochs=1)
    assert len(run.get_train_dataloader()) == 13
    run.train()
    first = run.kcd_loader
    run.train()
    assert run.kcd_loader is not first
    assert np.array(run.kcd_loader.tracker.count).tolist() == [1] * N


class Half(Distil):
    """Records nothing in the first steps, and then every third batch."""

    def kcd_record(self, *args: Any, **settings: Any) -> None:
        if self.state.global_step >= 3 and self.kcd_indices is not None and self.kcd_indices[0] % 3 == 0:
            super().kcd_record(*args, **settings)


def test_batches_that_are_not_recorded_are_done(tmp_path: Path) -> None:
    """A run that is resumed after one goes on behind it."""
    whole = made(tmp_path, of=Half, save_strategy="steps", save_steps=1)
    whole.train()
    assert 0 < np.array(whole.kcd_loader.tracker.count).sum() < sum(SIZES)
    for step in (2, 4, 6, 9):
        then = made(tmp_path / "then", of=Half)
        then.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        batches = flat(then.model.drawn)
        assert batches == flat(whole.model.drawn)[-len(batches) :]
        assert (then.state.global_step, then.state.max_steps) == (sum(STEPS[1]), sum(STEPS[1]))
        assert all(map(torch.equal, result(then)["weights"], result(whole)["weights"]))


def test_a_loss_may_prepare_other_inputs_and_evaluate(tmp_path: Path) -> None:
    class Prepares(Distil):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
            if self.kcd_indices is None:
                return super().compute_loss(model, inputs, *args, **settings)
            indices = self.kcd_indices
            inputs = self._prepare_inputs(self._prepare_inputs(inputs))
            self._prepare_inputs({"x": inputs["x"]})
            self._prepare_inputs([inputs["x"]])
            if self.state.global_step == 5:
                self.evaluate()
                model.train()
            assert self.kcd_indices is indices
            return super().compute_loss(model, inputs, *args, **settings)

    class PreparesBefore(Trainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
            return super().training_step(model, self._prepare_inputs(inputs), *args, **settings)

    class Both(Prepares, PreparesBefore):
        pass

    checked(made(tmp_path, of=Both))


# -- what is refused ---------------------------------------------------------------------------------------


def test_a_training_step_that_the_mixin_does_not_see_is_refused(tmp_path: Path) -> None:
    class Own(Distil):
        def training_step(self, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
            model.train()
            inputs = self._prepare_inputs(inputs)
            self.kcd_record(model(inputs["x"])["logits"])

    run = made(tmp_path, of=Own)
    with pytest.raises(RuntimeError, match=r"training_step\(\) of Own must call super\(\).training_step\(\)"):
        run.train()
    assert run.state.global_step == 0


def test_a_batch_is_recorded_once(tmp_path: Path) -> None:
    class Twice(Distil):
        def compute_loss(self, *args: Any, **settings: Any) -> Any:
            loss = super().compute_loss(*args, **settings)
            self.kcd_record(torch.zeros(BATCH, 5))
            return loss

    with pytest.raises(RuntimeError, match=r"kcd_record\(\) was called twice for one batch"):
        made(tmp_path, of=Twice).train()


def test_a_batch_from_elsewhere_is_found_out(tmp_path: Path) -> None:
    class Replays(Distil):
        def training_step(self, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
            inputs = {"x": torch.zeros(BATCH, 8), "labels": torch.zeros(BATCH, dtype=torch.int64)}
            return super().training_step(model, inputs, *args, **settings)

    with pytest.raises(RuntimeError, match=f"has no '{INDICES}', so the training loader did not draw it"):
        made(tmp_path, of=Replays).train()


def test_a_loader_with_a_gate_is_refused(tmp_path: Path) -> None:
    class Asks(Distil):
        def kcd_wrap(self, loader: Any) -> Any:
            self._kcd_settings["ask"] = 0.25
            return super().kcd_wrap(loader)

    with pytest.raises(TypeError, match=r"kcd_wrap\(\) of Asks made a loader with ask=: the Trainer draws"):
        made(tmp_path, of=Asks).train()


def test_settings_have_names(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="there is no kcd_alfa, but kcd_schedule and kcd_value, kcd_alpha"):
        made(tmp_path, also={"kcd_alfa": 0.1})
    for wrong in (3, None):
        with pytest.raises(TypeError, match="kcd_schedule must be a CondensationSchedule"):
            made(tmp_path, also={"kcd_schedule": wrong})
    with pytest.raises(
        ValueError, match=r"kcd_schedule must say how many samples are kept, and FreeSchedule"
    ):
        made(tmp_path, also={"kcd_schedule": kcd.FreeSchedule(), "kcd_select": kcd.InfoBatch(4)})
    with pytest.raises(
        ValueError, match=r"FreeSchedule\(period=1, until=3\), which is kcd_select's own, leaves"
    ):
        made(tmp_path, also={"kcd_schedule": None, "kcd_select": kcd.InfoBatch(4)})
    with pytest.raises(
        TypeError,
        match=r"takes no kcd_ask: .* for kcd_adapters\.trainers\.accelerate\.prepare, in a loop of your own",
    ):
        made(tmp_path, also={"kcd_ask": 0.25})
    mixer = partial(kcd.mix_samples, fields=["x"])
    for unused, why in (
        ({"kcd_mixer": mixer}, r"kcd_mixer=.*: with kcd_mixing=None nothing is mixed"),
        (
            {"kcd_alpha": 0.1, "kcd_select": "random"},
            r"kcd_alpha=0\.1 .*: with kcd_select=random nothing is ranked",
        ),
    ):
        with pytest.raises(ValueError, match=why):
            made(tmp_path, also=unused)
    run = made(
        tmp_path,
        also={"kcd_alpha": 0.5, "kcd_seed": 9, "kcd_value": "margin", "kcd_statistic": "last"},
        num_train_epochs=1,
    )
    run.train()
    state = run.kcd_loader.gather_state_dict()[0]
    assert (state["alpha"], run.kcd_loader.sampler.seed) == (0.5, 9)
    assert run.kcd_loader.tracker.statistic == "last"


def test_the_mixin_comes_first() -> None:
    class Alone(KCDTrainerMixin):
        pass

    with pytest.raises(TypeError, match="has no _inner_training_loop"):
        Alone(kcd_schedule=SCHEDULE)


def test_a_loader_that_hides_the_mixins_is_refused(tmp_path: Path) -> None:
    class Hides(Distil):
        def get_train_dataloader(self) -> Any:
            return DataLoader(self.train_dataset, batch_size=BATCH)

    class Between(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return DataLoader(self.train_dataset, batch_size=8, collate_fn=self.data_collator)

    with pytest.raises(TypeError, match=r"get_train_dataloader\(\) of Hides hides the mixin's"):
        made(tmp_path, of=Hides).train()

    class Right(Distil, Between):
        pass

    run = made(tmp_path, of=Right, num_train_epochs=1)
    run.train()
    assert flat(run.model.drawn[0]) == list(range(N))


class Endless(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        yield from Samples(N, dicts=True)


@pytest.mark.parametrize(
    ("settings", "more", "match"),
    [
        (
            {"max_steps": 3},
            {"data": Endless()},
            r"train_dataset has no indices to choose from, .* without streaming=True\), or .* in a loop of your own",
        ),
        (
            {"train_sampling_strategy": "group_by_length"} if FIVE else {"group_by_length": True},
            {},
            r"an order by length \(group_by_length",
        ),
        ({"accelerator_config": {"dispatch_batches": True}}, {}, "dispatch_batches=True"),
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 100},
            {},
            "epoch 4 has no batch, and the trainer would end there",
        ),
        (
            {} if FIVE else {"include_tokens_per_second": True},
            {},
            "" if FIVE else "tokens of the first epoch",
        ),
        (
            {},
            {"also": {"data_collator": lambda samples: [sample["x"] for sample in samples]}},
            "must return dicts, which the batch's indices can travel in; got list",
        ),
    ],
)
def test_refused_before_the_first_step(tmp_path: Path, settings: Any, more: Any, match: str) -> None:
    if not match:
        pytest.skip("of 4.57 alone")
    run = made(tmp_path, **settings, **more)
    with pytest.raises((TypeError, ValueError), match=match):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.parametrize("kind", ["tp", "cp", "sp"])
def test_ranks_that_share_a_replica_are_refused(tmp_path: Path, monkeypatch: Any, kind: str) -> None:
    run = made(tmp_path)
    monkeypatch.setattr(run, f"get_{kind}_size", lambda: 2, raising=False)
    with pytest.raises(ValueError, match=f"{kind}_size of more than 1 is not supported"):
        run.get_train_dataloader()


def test_a_checkpoint_without_the_mixin_is_refused(tmp_path: Path) -> None:
    made(tmp_path, of=Trainer, save_strategy="steps", save_steps=3, max_steps=3).train()
    with pytest.raises(ValueError, match=r"has no kcd\.ckpt, so it was saved without KCDTrainerMixin"):
        made(tmp_path).train(resume_from_checkpoint=True)


def test_another_schedule_than_that_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    made(tmp_path, save_strategy="steps", save_steps=3, max_steps=3).train()
    other = made(tmp_path, also={"kcd_schedule": kcd.CondensationSchedule(ratio=0.5, stages=3, period=1)})
    with pytest.raises(ValueError, match="schedule"):
        other.train(resume_from_checkpoint=True)


def test_versions_that_count_otherwise_are_told(tmp_path: Path) -> None:
    class CountsEpochs(Distil):
        def set_initial_training_values(self, *args: Any) -> Any:
            epochs, steps, *others = super().set_initial_training_values(*args)
            return epochs, int(steps), *others

    made(tmp_path, save_strategy="epoch").train()
    run = made(tmp_path, of=CountsEpochs, ignore_data_skip=True)
    with pytest.raises(RuntimeError, match="Trainer begins epoch 4, and the condensed loader is in epoch 3"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-13"))
    if FIVE:

        class CachesSteps(Distil):
            def _run_epoch(self, **settings: Any) -> Any:
                return Trainer._run_epoch(self, **settings)

        with pytest.raises(RuntimeError, match="at step 12 at the end of epoch 2, where step 13 is due"):
            made(tmp_path, of=CachesSteps).train()


# -- wrap_loader by itself ---------------------------------------------------------------------------------


class Plain(Trainer):  # type: ignore[misc]
    """What can be written without the mixin."""

    evaluated = False
    workers = 0
    loader: Any = None

    def get_train_dataloader(self) -> Any:
        self.loader = self.loader or kcd.wrap_loader(
            DataLoader(
                self.train_dataset,
                BATCH,
                shuffle=True,
                collate_fn=self.data_collator,
                num_workers=self.workers,
            ),
            schedule=SCHEDULE,
            mixing=None,
        )
        return self.loader

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits = model(inputs["x"])["logits"]
        if model.training or self.evaluated:
            self.loader.record(logits)
        loss = torch.nn.functional.cross_entropy(logits, inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss


class Ends(TrainerCallback):  # type: ignore[misc]
    def on_epoch_end(self, args: Any, state: Any, control: Any, train_dataloader: Any, **others: Any) -> None:
        train_dataloader.end_epoch()


def plain(folder: Path, **settings: Any) -> Any:
    run = made(folder, of=Plain, data=Samples(N, dicts=True), **settings)
    run.remove_callback(Marks)
    run.add_callback(Ends())
    return run


def test_wrap_loader_alone_refuses_the_look_ahead_of_accumulation(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"2 batches were fetched since the pass began, .* so the loop looks ahead"
    ):
        plain(tmp_path).train()


def test_wrap_loader_alone_refuses_what_is_evaluated(tmp_path: Path) -> None:
    run = plain(tmp_path, gradient_accumulation_steps=1, eval_strategy="epoch")
    run.evaluated = True
    with pytest.raises(RuntimeError, match=r"record\(\)"):
        run.train()


def test_wrap_loader_alone_warns_of_lengths_that_are_taken_once(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"set_epoch\(0\) comes from a trainer, .*loader\.total_steps\(epochs\)"
    ):
        plain(tmp_path, gradient_accumulation_steps=1, max_steps=1).train()


@pytest.mark.parametrize("workers", [0, 1])
def test_wrap_loader_alone_is_not_resumed_within_an_epoch(tmp_path: Path, workers: int) -> None:
    settings = {"gradient_accumulation_steps": 1}
    plain(tmp_path, save_strategy="steps", save_steps=5, max_steps=5, **settings).train()
    run = plain(tmp_path, **settings)
    run.workers = workers
    with pytest.raises((RuntimeError, ValueError), match=r"record\(\)|prefetch_factor"):
        run.train(resume_from_checkpoint=True)


@pytest.mark.filterwarnings("error:set_epoch")
def test_wrap_loader_alone_records_right_and_is_scheduled_by_its_own_steps(tmp_path: Path) -> None:
    run = plain(tmp_path, gradient_accumulation_steps=1)
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    wrapped = run.get_train_dataloader()
    total_steps = wrapped.total_steps(EPOCHS)
    run.optimizer = optimizer
    run.lr_scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=total_steps)
    run.train()
    value, count = summed(run.model.read[0], N)
    assert np.array_equal(np.array(run.loader.tracker.count), count)
    np.testing.assert_allclose(np.array(run.loader.tracker.value), value, atol=3e-7)
    assert run.lr_scheduler.get_last_lr() == [0.0]
    assert run.state.global_step == total_steps == 44
