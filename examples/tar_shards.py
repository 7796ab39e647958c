"""Distils from a stream of tar shards, and skips what was dropped before it is decoded."""

import io
import tarfile
import tempfile
from pathlib import Path

import torch
from digits import accuracy, images, kd_loss, labels, network, summary, trained_teacher
from torch.utils.data import DataLoader, IterableDataset

import kcd_core as kcd

EPOCHS, SHARDS, SIZE = 14, 6, 200


def write_shards(folder):
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for index in range(shard * SIZE, (shard + 1) * SIZE):
                member = tarfile.TarInfo(f"{index}.{labels[index]}")
                data = images[index].numpy().tobytes()
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return sorted(folder.glob("*.tar"))


class Shards(IterableDataset):
    def __init__(self, paths):
        self.paths = paths

    def __iter__(self):
        for path in self.paths:
            with tarfile.open(path) as tar:
                for member in tar:
                    yield member.name, tar.extractfile(member).read()


def decoded(samples):
    names, data = zip(*samples, strict=True)
    return list(names), torch.stack([torch.frombuffer(bytearray(each), dtype=torch.float32) for each in data])


torch.manual_seed(0)
teacher, student = trained_teacher(), network(16)
optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
with tempfile.TemporaryDirectory() as folder:
    stream = kcd.CondensedStream(
        Shards(write_shards(Path(folder))),
        key=0,  # where a sample has its id
        slots=12_000,
        schedule=kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.7),
    )
    loader, drawn = DataLoader(stream, batch_size=64, collate_fn=decoded), 0
    for _ in range(EPOCHS):
        for names, x in loader:
            with torch.no_grad():
                teacher_logits = teacher(x)
            logits = student(x)
            loss = kd_loss(logits, teacher_logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stream.record(logits, ids=names)
            drawn += len(names)
        stream.end_epoch()

print(stream.history)
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
print(summary(drawn, EPOCHS, round(stream.share * SHARDS * SIZE)))
