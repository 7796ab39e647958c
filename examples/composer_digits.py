"""Distils with Composer's Trainer, by an Algorithm that records and ends the epochs."""

import torch
from composer import Algorithm, ComposerModel, Event, Trainer
from composer.core import DataSpec
from composer.optim import CosineAnnealingScheduler
from digits import accuracy, kd_loss, network, summary, train, trained_teacher
from torch.utils.data import DataLoader

import kcd_core as kcd

EPOCHS = 28

teacher = trained_teacher()


class Condense(Algorithm):
    def __init__(self, loader):
        self.loader = loader

    def match(self, event, state):
        return event in (Event.AFTER_FORWARD, Event.EPOCH_END)

    def apply(self, event, state, logger):
        if event == Event.AFTER_FORWARD:
            self.loader.record(state.outputs)
        else:
            self.loader.end_epoch()
            state.dataloader_len = len(self.loader)

    def state_dict(self):
        return {"loader": self.loader.gather_state_dict()}

    def load_state_dict(self, state):
        self.loader.load_state_dict(state["loader"])


class Student(ComposerModel):
    def __init__(self):
        super().__init__()
        self.layers = network(16)

    def forward(self, batch):
        return self.layers(batch[0])

    def loss(self, outputs, batch):
        with torch.no_grad():
            teacher_logits = teacher(batch[0])
        return kd_loss(outputs, teacher_logits)


torch.manual_seed(0)
student = Student()
schedule = kcd.CondensationSchedule.for_epochs(EPOCHS, ratio=0.3)
loader = kcd.wrap_loader(DataLoader(train, batch_size=64, shuffle=True), schedule=schedule, mixing=None)
trainer = Trainer(
    model=student,
    train_dataloader=DataSpec(loader, get_num_samples_in_batch=lambda batch: len(batch[0])),
    max_duration=f"{EPOCHS}ep",
    optimizers=torch.optim.Adam(student.parameters(), lr=1e-2),
    schedulers=CosineAnnealingScheduler(t_max=f"{loader.total_steps(EPOCHS)}ba"),
    algorithms=Condense(loader),
    spin_dataloaders=False,
    progress_bar=False,
    device="cpu",
)
trainer.fit()

print(loader.history)
print(f"teacher {accuracy(teacher):.1%}, student {accuracy(student.layers):.1%}")
print(summary(loader.tracker.count.sum(), EPOCHS, loader.sampler.num_kept))
