"""Distils a teacher's sentence embeddings with the trainer of sentence-transformers."""

import tempfile

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.models import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader

import kcd_core as kcd
from kcd_adapters.trainers.transformers import KCDTrainerMixin

EPOCHS = 8

torch.manual_seed(0)
words = {f"word{i}": i for i in range(50)}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="word0"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
teacher, student = (
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)]) for _ in range(2)
)
sentences = [f"word{i % 50} word{i % 49}" for i in range(480)]
targets = teacher.encode(sentences)
data = Dataset.from_dict({"sentence": sentences, "label": targets.tolist()})


class Base(SentenceTransformerTrainer):
    def get_train_dataloader(self):  # instead of a batch sampler
        size, collate = self.args.train_batch_size, self.data_collator
        return DataLoader(self.train_dataset, size, shuffle=True, collate_fn=collate)


class DistilTrainer(KCDTrainerMixin, Base):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        (features,), targets = self.collect_features(inputs)
        errors = (model(features)["sentence_embedding"] - targets).square().mean(1)
        self.kcd_record(values=errors.detach())
        return (errors.mean(), {}) if return_outputs else errors.mean()


with tempfile.TemporaryDirectory() as folder:
    args = SentenceTransformerTrainingArguments(
        folder,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=32,
        learning_rate=0.1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
    trainer = DistilTrainer(student, args, train_dataset=data, kcd_schedule=schedule)
    trainer.train()

loader = trainer.kcd_loader
error = ((student.encode(sentences) - targets) ** 2).mean()
print(loader.history)
print(f"mean squared error {error:.4f}")
drawn, kept, total = loader.tracker.count.sum(), loader.sampler.num_kept, len(sentences)
print(f"{drawn:,} of {EPOCHS * total:,} samples drawn, {kept:,} of {total:,} kept")
