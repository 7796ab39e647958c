"""TRL's trainers: V of each sequence is a second reading, token by token, from a second forward pass; sets are the reference's."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl", reason="trl is not installed: run make test-trainers")

import reference
import torch
from common import expected_sets, on_ranks, summed
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

import kcd_core as kcd
from kcd_adapters.trainers import transformers
from kcd_adapters.trainers.trl import KCDTrainerMixin

N, BATCH, EPOCHS = 21, 4, 3
SCHEDULE = kcd.CondensationSchedule(ratio=0.4, stages=2, period=1)
STEPS = [6, 4, 3]  # of 21, 15 and 9 samples
SPECIAL = ["<pad>", "<eos>", "<unk>", "user", "assistant", ":"]
WORDS = [*SPECIAL, *(f"w{i}" for i in range(40))]


def tokenizer() -> Any:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant :{% endif %}"
    )
    return made


def language_model(seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None, initializer_range=0.3,
        )  # fmt: skip
        return LlamaForCausalLM(config)


def texts(chat: bool) -> Any:
    """Prompts and completions; a prompt's first word says which sample it is."""
    rng = np.random.default_rng(0)
    rows: list[Any] = []
    for i in range(N):
        prompt, completion = (
            " ".join(f"w{k}" for k in rng.integers(0, 40, rng.integers(1, 6))) for _ in "ab"
        )
        prompt = f"w{i} {prompt}"
        rows.append(
            {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]}
            if chat
            else {"prompt": prompt, "completion": f" {completion}"}
        )
    return Dataset.from_list(rows)


class Reads:
    """Behind the mixin: reads every batch that is trained on a second time, by the words in it, in float64."""

    def compute_loss(self, model: Any, inputs: Any, *others: Any, **settings: Any) -> Any:
        trainer: Any = self
        if model.training and trainer.kcd_indices is not None:
            with torch.no_grad():
                logits = trainer.model(
                    input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
                ).logits
            rows = zip(logits.double(), inputs["input_ids"].tolist(), inputs["labels"].tolist(), strict=True)
            for (said, ids, labels), index in zip(rows, trainer.kcd_indices.tolist(), strict=True):
                if index < 0:  # pads a rank's last batch
                    continue
                sample = next(one for one in ids if one >= len(SPECIAL)) - len(SPECIAL)
                read = [
                    reference.entropy(token)
                    for token, label in zip(said[:-1].tolist(), labels[1:], strict=True)
                    if label != -100
                ]
                trainer.read.append((sample, sum(read) / len(read)))
        return super().compute_loss(model, inputs, *others, **settings)  # type: ignore[misc]


class Base(Reads, SFTTrainer):  # type: ignore[misc]
    pass


class BaseGKD(Reads, GKDTrainer):  # type: ignore[misc]
    pass


class SFT(KCDTrainerMixin, Base):
    pass


class GKD(KCDTrainerMixin, BaseGKD):
    pass


def arguments(config: Any, folder: Path, **settings: Any) -> Any:
    return config(
        **{
            "output_dir": str(folder), "per_device_train_batch_size": BATCH, "num_train_epochs": EPOCHS, "learning_rate": 0.05,
            "lr_scheduler_type": "linear", "report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
            "bf16": False, "gradient_checkpointing": False, "logging_strategy": "no", **settings,
        }
    )  # fmt: skip


def sft(folder: Path, cls: Any = SFT, **settings: Any) -> Any:
    data = texts(chat=False)
    trainer = cls(
        language_model(0),
        args=arguments(SFTConfig, folder, **settings),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer(),
        kcd_schedule=SCHEDULE,
    )
    trainer.read = []
    return trainer


def gkd(folder: Path, cls: Any = GKD, **settings: Any) -> Any:
    trainer = cls(
        language_model(0),
        language_model(1),
        args=arguments(GKDConfig, folder, max_new_tokens=4, **settings),
        train_dataset=texts(chat=True),
        processing_class=tokenizer(),
        kcd_schedule=SCHEDULE,
    )
    trainer.read = []
    return trainer


def distillation(folder: Path, cls: Any = DistillationTrainer, **settings: Any) -> Any:
    """TRL's own trainer, on-policy."""
    return cls(
        language_model(0),
        language_model(1),
        args=arguments(DistillationConfig, folder),
        train_dataset=texts(chat=False).select_columns(["prompt"]),
        processing_class=tokenizer(),
        **settings,
    )


def own_index(trainer: Any) -> list[int]:
    """Which of `texts` each row of the training data is: SFTTrainer shuffles and filters what it prepares."""
    if "input_ids" not in trainer.train_dataset.column_names:
        return list(range(N))
    return [ids[0] - len(SPECIAL) for ids in trainer.train_dataset["input_ids"]]


def check(trainer: Any, read: list[tuple[int, float]], steps: int) -> None:
    tracker, order = trainer.kcd_loader.tracker, own_index(trainer)
    value, count = summed(read, N)
    np.testing.assert_allclose(tracker.value, value[order], rtol=3e-6)
    np.testing.assert_array_equal(tracker.count, count[order])
    of_row = {sample: row for row, sample in enumerate(order)}
    sizes = iter(np.split(read, np.cumsum([21, 15])))
    epochs = [[(of_row[int(sample)], one) for sample, one in part] for part in sizes]
    np.testing.assert_array_equal(trainer.kcd_loader.sampler.kept, expected_sets(epochs, N, SCHEDULE)[-1])
    assert trainer.state.global_step == trainer.state.max_steps == steps
    assert set(trainer.lr_scheduler.get_last_lr()) == {0.0}


def test_sft_without_logits(tmp_path: Path) -> None:
    """From the entropies that TRL's fused head computes; with accumulation; evaluation is not recorded."""
    trainer = sft(tmp_path, gradient_accumulation_steps=2, eval_strategy="epoch", gradient_checkpointing=True)
    trainer.train()
    check(trainer, trainer.read, sum(-(-steps // 2) for steps in STEPS))
    assert len(trainer.state.log_history) > EPOCHS


@pytest.mark.parametrize("lmbda", [0.0, 0.5])
def test_gkd_with_logits(lmbda: float, tmp_path: Path) -> None:
    """Of the data, and of completions that the student generates: a sequence is its prompt."""
    random.seed(3)
    trainer = gkd(tmp_path, lmbda=lmbda)
    trainer.train()
    check(trainer, trainer.read, sum(STEPS))


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    class Distils(transformers.KCDTrainerMixin, Base):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None
        ) -> Any:
            loss = super().compute_loss(model, inputs)
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            self.kcd_record(logits[:, :-1], targets=inputs["labels"][:, 1:])
            return loss

    def make(*args: Any, **settings: Any) -> Any:
        return Distils(*args, kcd_value="sequence_entropy", **settings)

    trainer = sft(tmp_path, make)
    trainer.train()
    check(trainer, trainer.read, sum(STEPS))


class OnLogitsThatTeachNothing(SFT):
    def compute_loss(self, model: Any, inputs: Any, *others: Any, **settings: Any) -> Any:
        loss, output = super().compute_loss(model, inputs, True, **settings)
        return loss + output.logits.square().mean()


def test_a_distillation_loss_on_logits_without_a_gradient_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"have no gradient.*logits = model\(\*\*inputs\).logits"):
        sft(tmp_path, OnLogitsThatTeachNothing, max_steps=1).train()


class Replays(BaseGKD):
    """Trains on a batch that was drawn before, as DistiLLM does from its buffer."""

    def training_step(self, model: Any, inputs: Any, *others: Any, **settings: Any) -> Any:
        self.buffer = [
            *getattr(self, "buffer", ()),
            {name: inputs[name] for name in self.kept if name in inputs},
        ]
        return super().training_step(model, dict(random.choice(self.buffer)), *others, **settings)


class ReplaysGKD(KCDTrainerMixin, Replays):
    kept = ("input_ids", "attention_mask", "labels", "prompts", "prompt_attention_mask")


class ReplaysWithIndices(ReplaysGKD):
    kept = (*ReplaysGKD.kept, transformers.INDICES)


def test_a_replayed_batch_is_found_out_by_its_index(tmp_path: Path) -> None:
    """Without one it is refused; where the buffer keeps it, the values are of the samples that were replayed."""
    with pytest.raises(RuntimeError, match="has no 'kcd_indices', so the training loader did not draw it"):
        gkd(tmp_path, ReplaysGKD, lmbda=0.0).train()
    random.seed(1)
    trainer = gkd(tmp_path, ReplaysWithIndices, lmbda=0.0)
    trainer.train()
    value, count = summed(trainer.read, N)
    np.testing.assert_allclose(trainer.kcd_loader.tracker.value, value, rtol=3e-6)
    np.testing.assert_array_equal(trainer.kcd_loader.tracker.count, count)
    assert count.max() > EPOCHS


def weights(trainer: Any) -> Any:
    return [p.detach().clone() for p in trainer.model.parameters()]


def test_an_interrupted_run_is_that_of_its_twin(tmp_path: Path) -> None:
    """Within an epoch and after one, what the student generates included."""

    def seeded() -> Any:
        return gkd(tmp_path, lmbda=0.5, save_strategy="steps", save_steps=4)

    random.seed(5)
    whole = seeded()
    whole.train()
    for step in (4, 8):
        random.seed(77)
        again = seeded()
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert all(map(torch.equal, weights(again), weights(whole)))
        np.testing.assert_array_equal(again.kcd_loader.tracker.value, whole.kcd_loader.tracker.value)
        np.testing.assert_array_equal(again.kcd_loader.sampler.kept, whole.kcd_loader.sampler.kept)


def ranked(folder: Path) -> Any:
    trainer = sft(folder, per_device_train_batch_size=2)
    trainer.train()
    tracker = trainer.kcd_loader.tracker
    return trainer.read, tracker.value, tracker.count, trainer.kcd_loader.sampler.kept, own_index(trainer)


def test_two_ranks(tmp_path: Path) -> None:
    (read, *mine), (other, *others) = on_ranks(ranked, tmp_path)
    np.testing.assert_array_equal(mine[2], others[2])
    assert len(read) + len(other) == 21 + 15 + 9
    for one, (value, count, _, order) in ((read, mine), (other, others)):
        want, times = summed(one, N)
        np.testing.assert_array_equal(count, times[order])
        np.testing.assert_allclose(value, want[order], rtol=3e-6)


def test_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"packing=True: a pack .* kcd_adapters.trainers.packing"):
        sft(tmp_path, packing=True, max_length=16)
    with pytest.raises(ValueError, match="padding_free=True puts a batch's sequences into one row"):
        sft(tmp_path, padding_free=True, max_length=None)
    for name, wrong in (("kcd_value", "entropy"), ("kcd_mixing", "fresh"), ("kcd_mixer", "samples")):
        with pytest.raises(TypeError, match=f"{name} is no setting for language models"):
            SFT(kcd_schedule=SCHEDULE, **{name: wrong})

    class OnPolicy(KCDTrainerMixin, DistillationTrainer):
        pass

    with pytest.raises(ValueError, match="OnPolicy draws each prompt several times"):
        distillation(tmp_path, OnPolicy, kcd_schedule=SCHEDULE)


def test_a_loss_that_shows_no_logits_says_so(tmp_path: Path) -> None:
    class Hides(Base):
        def compute_loss(self, model: Any, inputs: Any, *others: Any, **settings: Any) -> Any:
            outputs = [super(Hides, self).compute_loss(model, inputs) for _ in range(self.times)]
            return sum(outputs) if outputs else next(model.parameters()).sum()

    for times in (0, 2):
        cls = type("HidesSFT", (KCDTrainerMixin, Hides), {"times": times})
        with pytest.raises(RuntimeError, match=f"ran the student {times} times, .* no value can be told"):
            sft(tmp_path, cls).train()


class PlainGKD(BaseGKD):
    """`wrap_loader` by hand, and none of our classes: recorded where the logits are."""

    loader: Any = None

    def get_train_dataloader(self) -> Any:
        if self.loader is None:
            made = DataLoader(texts(chat=True), batch_size=BATCH, shuffle=True, collate_fn=self.data_collator)
            settings: Any = {"value": "sequence_entropy", "mixing": None, "seed": 0}
            self.loader = kcd.wrap_loader(made, schedule=SCHEDULE, **settings)
        return self.loader

    @property
    def kcd_indices(self) -> Any:
        return self.loader.indices

    def compute_loss(self, model: Any, inputs: Any, *others: Any, **settings: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        self.loader.record(outputs.logits[:, :-1], targets=inputs["labels"][:, 1:])
        return loss


class EndsEpochs(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_epoch_end(self, *others: Any, **settings: Any) -> None:
        self.trainer.loader.end_epoch()


def test_wrap_loader_alone(tmp_path: Path) -> None:
    """Right, also on-policy; accumulation, which looks ahead, and prompts that are drawn several times are refused."""
    random.seed(3)

    def made(*args: Any, kcd_schedule: Any, **settings: Any) -> Any:
        trainer = PlainGKD(*args, **settings)
        trainer.add_callback(EndsEpochs(trainer))
        return trainer

    trainer = gkd(tmp_path, made, lmbda=0.5, max_steps=sum(STEPS))
    trainer.train()
    value, count = summed(trainer.read, N)
    assert count.sum() == 21 + 15 + 9
    np.testing.assert_allclose(trainer.loader.tracker.value, value, rtol=3e-6)
    np.testing.assert_array_equal(trainer.loader.tracker.count, count)
    with pytest.raises(RuntimeError, match="can't tell which batch the logits belong to"):
        gkd(tmp_path, made, lmbda=0.0, gradient_accumulation_steps=2).train()
    draws = distillation(tmp_path)
    repeated = DataLoader(draws.train_dataset, batch_size=BATCH, sampler=draws._get_train_sampler())
    with pytest.raises(TypeError, match="RepeatSampler"):
        kcd.wrap_loader(repeated, schedule=SCHEDULE)
