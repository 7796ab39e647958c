"""Distils from packed sequences, which are packed anew in every epoch."""

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from words import accuracy, chats, ids, language_model, trained_teacher

import kcd_core as kcd
from kcd_adapters.trainers import packing

EPOCHS = 8

teacher = trained_teacher()
student = language_model(24)
optimizer = torch.optim.AdamW(student.parameters(), lr=0.03)


def tokens(_, index):
    *question, answer = ids[index].tolist()
    return {"input_ids": [*question, answer], "labels": [-100] * len(question) + [answer]}


sequences = packing.with_index(chats.map(tokens, with_indices=True, remove_columns=chats.column_names))
schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
run = kcd.Condensation(kcd.CondensedSampler(len(sequences), mixing=None), schedule=schedule)
collate = packing.IndexCollator(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True))
for _ in range(EPOCHS):
    packed = packing.pack(sequences, run, seq_length=32, strategy="bfd")
    for batch in DataLoader(packed, batch_size=8, shuffle=True, collate_fn=collate):
        index, labels = batch.pop(packing.INDEX)[:, 1:], batch.pop("labels")[:, 1:]
        with torch.no_grad():
            soft = teacher(**batch).logits[:, :-1].softmax(-1)
        logits = student(**batch).logits[:, :-1]
        answers = labels != -100
        loss = F.cross_entropy(logits[answers], soft[answers])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.record(**packing.sequence_values(logits, targets=labels, index=index))
    run.end_epoch()

print(run.history)
print(f"right answers: teacher {accuracy(teacher):.0%}, student {accuracy(student):.0%}")
drawn, kept, total = run.tracker.count.sum(), run.sampler.num_kept, len(sequences)
print(f"{drawn:,} of {EPOCHS * total:,} samples drawn, {kept:,} of {total:,} kept")
