"""Distils from a stream of tar shards, and skips what was dropped before it is decoded."""

import io
import tarfile
import tempfile
from pathlib import Path

import torch
from digits import accuracy, images, kd_loss, labels, network, summary, trained_teacher
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

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
    def __init__(self, paths, rank=0, ranks=1):
        self.paths = paths[rank::ranks]

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for path in self.paths[first::step]:
            with tarfile.open(path) as tar:
                for member in tar:
                    yield {"__key__": member.name, "image": tar.extractfile(member).read()}


def decoded(samples):
    data = [torch.frombuffer(bytearray(sample["image"]), dtype=torch.float32) for sample in samples]
    return [sample["__key__"] for sample in samples], torch.stack(data)


torch.manual_seed(0)
teacher, student = trained_teacher(), network(16)
optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
with tempfile.TemporaryDirectory() as folder:
    paths = write_shards(Path(folder))
    schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
    stream = kcd.CondensedStream(Shards(paths), key="__key__", slots=12_000, schedule=schedule)
    loader = DataLoader(stream, batch_size=64, collate_fn=decoded)
    for _ in range(EPOCHS):
        for keys, x in loader:
            with torch.no_grad():
                teacher_logits = teacher(x)
            logits = student(x)
            loss = kd_loss(logits, teacher_logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stream.record(logits, ids=keys)
        stream.end_epoch()

print(stream.history)
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
print(summary(stream.account.total.drawn, EPOCHS, round(stream.share * SHARDS * SIZE)))
