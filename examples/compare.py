"""Trains KC-KD, random dropping and plain KD alike, and writes each run's history and accuracy for kcd report."""

import json
from pathlib import Path

import torch
from digits import accuracy, kd_loss, network, summary, train, trained_teacher
from torch.utils.data import DataLoader

import kcd_core as kcd

EPOCHS = 28

teacher = trained_teacher()


def distil(ratio, **settings):
    torch.manual_seed(0)  # the same student, and the same order, in every run
    student = network(16)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    loader = DataLoader(train, batch_size=64, shuffle=True)

    schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=ratio)
    loader = kcd.wrap_loader(loader, schedule=schedule, mixing=None, **settings)
    for _ in range(EPOCHS):
        for x, _ in loader:
            with torch.no_grad():
                teacher_logits = teacher(x)
            logits = student(x)
            loss = kd_loss(logits, teacher_logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loader.record(logits)
        loader.end_epoch()
    return student, loader


folder = Path("kcd-compare")
folder.mkdir(exist_ok=True)
runs = {"kd": {"ratio": 1}, "random": {"ratio": 0.3, "select": "random"}, "kc": {"ratio": 0.3}}
for name, settings in runs.items():
    student, loader = distil(**settings)
    told = {"accuracy": f"{accuracy(student):.1%}"}
    content = {"history": json.loads(loader.history.to_json()), "summary": told}
    (folder / f"{name}.json").write_text(json.dumps(content))
    print(f"{folder}/{name}.json: student {told['accuracy']}")
print(summary(loader.account.total.drawn, EPOCHS, loader.sampler.num_kept))
