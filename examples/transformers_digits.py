"""Distils a linear teacher's knowledge of the digits with Hugging Face's Trainer, resumes in mid-epoch, and prints what was drawn."""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments, set_seed

import kcd_core as kcd
from kcd_adapters.trainers.transformers import KCDTrainerMixin

EPOCHS = 12

set_seed(0)
images, labels = load_digits(return_X_y=True)
images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
teacher = torch.nn.Linear(64, 10)
optimizer = torch.optim.Adam(teacher.parameters(), lr=0.05)
for _ in range(100):
    optimizer.zero_grad()
    cross_entropy(teacher(images), labels).backward()
    optimizer.step()
samples = [{"x": image, "labels": label} for image, label in zip(images, labels, strict=True)]


class Student(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def forward(self, x, labels=None):
        logits = self.layers(x)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class DistilTrainer(KCDTrainerMixin, Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        with torch.no_grad():
            soft = teacher(inputs["x"]).softmax(-1)
        self.kcd_record(outputs["logits"])
        loss = outputs["loss"] + cross_entropy(outputs["logits"], soft)
        return (loss, outputs) if return_outputs else loss


def trainer(folder):
    args = TrainingArguments(
        folder,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=64,
        learning_rate=0.02,
        lr_scheduler_type="cosine",
        save_steps=100,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    schedule = kcd.CondensationSchedule(ratio=0.5, stages=3, period=3)
    return DistilTrainer(Student(), args, train_dataset=samples, kcd_schedule=schedule)


with tempfile.TemporaryDirectory() as folder:
    trainer(folder).train()
    again = trainer(folder)
    again.train(resume_from_checkpoint=f"{folder}/checkpoint-100")

student, loader = again.model, again.kcd_loader
with torch.no_grad():
    right = (student.layers(images).argmax(-1) == labels).double().mean()
print(f"accuracy {right:.1%} after {again.state.global_step} of {again.state.max_steps} steps")
print(loader.history)
drawn, total, kept = int(loader.tracker.count.sum()), EPOCHS * len(images), loader.history[-1]["kept"]
print(f"{drawn:,} of {total:,} samples drawn, {kept:,} of {len(images):,} kept")
