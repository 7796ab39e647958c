"""Distils with Hugging Face's Trainer, and resumes from a checkpoint within an epoch."""

import tempfile

import torch
from digits import accuracy, kd_loss, network, summary, train, trained_teacher
from transformers import Trainer, TrainingArguments, set_seed

import kcd_core as kcd
from kcd_adapters.trainers.transformers import KCDTrainerMixin

EPOCHS = 28

teacher = trained_teacher()
samples = [{"x": x, "labels": label} for x, label in train]
set_seed(0)


class Student(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = network(16)

    def forward(self, x, labels=None):
        return {"logits": self.layers(x)}


class DistilTrainer(KCDTrainerMixin, Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        with torch.no_grad():
            teacher_logits = teacher(inputs["x"])
        self.kcd_record(outputs["logits"])
        loss = kd_loss(outputs["logits"], teacher_logits)
        return (loss, outputs) if return_outputs else loss


def new_trainer(folder):
    args = TrainingArguments(
        folder,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=64,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        save_steps=100,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
    trainer = DistilTrainer(Student(), args, train_dataset=samples, kcd_schedule=schedule)
    return trainer


with tempfile.TemporaryDirectory() as folder:
    new_trainer(folder).train()
    trainer = new_trainer(folder)
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-100")

student, loader = trainer.model.layers, trainer.kcd_loader
print(loader.history)
print(f"step {trainer.state.global_step} of {trainer.state.max_steps}")
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
print(summary(loader.tracker.count.sum(), EPOCHS, loader.sampler.num_kept))
