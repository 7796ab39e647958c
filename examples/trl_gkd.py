"""Distils a small language model with TRL's GKDTrainer."""

import tempfile

from trl.experimental.gkd import GKDConfig, GKDTrainer
from words import accuracy, chats, language_model, tokenizer, trained_teacher

import kcd_core as kcd
from kcd_adapters.trainers.trl import KCDTrainerMixin

EPOCHS = 8


class DistilTrainer(KCDTrainerMixin, GKDTrainer):  # or SFTTrainer
    pass


teacher = trained_teacher()
with tempfile.TemporaryDirectory() as folder:
    args = GKDConfig(
        folder,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=32,
        learning_rate=0.03,
        lmbda=0.0,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = DistilTrainer(
        model=language_model(24),
        teacher_model=teacher,
        args=args,
        train_dataset=chats,
        processing_class=tokenizer,
        kcd_schedule=kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3),
    )
    trainer.train()

loader, total = trainer.kcd_loader, len(chats)
print(loader.history)
print(f"right answers: teacher {accuracy(teacher):.0%}, student {accuracy(trainer.model):.0%}")
drawn, kept = loader.tracker.count.sum(), loader.sampler.num_kept
print(f"{drawn:,} of {EPOCHS * total:,} samples drawn, {kept:,} of {total:,} kept")
