"""A learning rate that falls in a line to 0, by the epoch or by the update."""


class Scheduler:
    def __init__(self, optimizer, total, t_in_epochs):
        self.optimizer, self.total, self.t_in_epochs = optimizer, total, t_in_epochs
        self.lr = optimizer.param_groups[0]["lr"]

    def _set(self, t):
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * max(0, 1 - t / self.total)

    def step(self, epoch, metric=None):
        if self.t_in_epochs:
            self._set(epoch)

    def step_update(self, num_updates, metric=None):
        if not self.t_in_epochs:
            self._set(num_updates)


def create_scheduler_v2(optimizer, num_epochs, step_on_epochs=True, updates_per_epoch=0):
    total = num_epochs * (1 if step_on_epochs else updates_per_epoch)
    return Scheduler(optimizer, total, step_on_epochs), num_epochs
