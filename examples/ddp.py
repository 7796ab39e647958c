"""Distils on two ranks: torchrun --nproc-per-node 2 examples/ddp.py"""

import tempfile

import torch
import torch.distributed as dist
from digits import accuracy, kd_loss, network, summary, train, trained_teacher
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import kcd_core as kcd

EPOCHS = 14

dist.init_process_group("gloo")  # on GPUs "nccl", after torch.cuda.set_device(local_rank)
teacher = trained_teacher()
student = DistributedDataParallel(network(16))
optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
loader = DataLoader(train, batch_size=32, sampler=DistributedSampler(train))

schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
loader = kcd.wrap_loader(loader, schedule=schedule, mixing=None)
for _ in range(EPOCHS):  # no sampler.set_epoch(): the loader does it
    for x, _ in loader:
        with torch.no_grad():
            teacher_logits = teacher(x)
        logits = student(x)
        loss = kd_loss(logits, teacher_logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loader.record(logits)
    loader.end_epoch()  # on every rank; recordings are summed where a stage ends

states = loader.gather_state_dict()  # on every rank, too: what rank 0 saves for all
if dist.get_rank() == 0:
    with tempfile.TemporaryDirectory() as folder:
        kcd.save_checkpoint(f"{folder}/kcd.ckpt", {"loader": states, "student": student.module.state_dict()})
    print(loader.history)
    print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student.module):.1%}")
    drawn = sum(loader.schedule.sizes(len(train), EPOCHS))
    print(summary(drawn, EPOCHS, loader.sampler.num_kept))
dist.destroy_process_group()
