"""Training loops as people write them, by name; each notes its own prediction for every batch, and knows nothing of kcd.

    python loops.py NAME RECORD [EPOCHS]

A sample is its index and eight numbers; models do not see the index. RECORD gets a list of (phase, epoch, indices,
logits in float64) in the order of training.
"""

import pickle
import sys
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

N, CLASSES, BATCH = 90, 5, 16
NOTES = []


class Data(Dataset):
    def __init__(self, fields="xy"):
        made = torch.Generator().manual_seed(0)
        self.points = torch.cat([torch.arange(N)[:, None].float(), torch.randn(N, 8, generator=made)], 1)
        self.targets = torch.randint(0, CLASSES, (N,), generator=made).tolist()
        self.fields = fields

    def __len__(self):
        return N

    def __getitem__(self, index):
        x, y = self.points[index], self.targets[index]
        if self.fields == "xyi":
            return x, y, index
        if self.fields == "views":
            return (x, x + torch.tensor([0.0] + [0.1] * 8)), y
        if self.fields == "dict":
            return {"idx": index, "pixel_values": x, "labels": y}
        return x, y


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Linear(8, width), nn.ReLU()), nn.Linear(width, CLASSES)

    def forward(self, x, is_feat=False):
        feature = self.body(x[:, 1:])
        logits = self.fc(feature)
        return ([x, feature], logits) if is_feat else logits


class Other(Net):
    pass


class Smoothing(nn.Module):
    """Label smoothing as timm has it, without cross_entropy."""

    def forward(self, x, target):
        log = x.log_softmax(-1)
        return (0.9 * -log.gather(1, target[:, None]).squeeze(1) - 0.1 * log.mean(-1)).mean()


def note(phase, epoch, x, logits):
    NOTES.append((phase, epoch, x[:, 0].long().tolist(), logits.detach().double().numpy()))


def loader(fields="xy", **options):
    return DataLoader(Data(fields), batch_size=BATCH, shuffle=True, **options)


def sgd(*models):
    return torch.optim.SGD([p for model in models for p in model.parameters()], lr=0.1)


def kd(student, teacher):
    return F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="batchmean")


def train(model, epochs, phase="train", data=None, criterion=None, teacher=None):
    data, optimizer, criterion = data or loader(), sgd(model), criterion or nn.CrossEntropyLoss()
    for epoch in range(1, epochs + 1):
        for x, y in data:
            logits = model(x)
            loss = criterion(logits, y)
            if teacher is not None:
                loss = loss + kd(logits, teacher(x))  # without no_grad, as some do
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note(phase, epoch, x, logits)


def plain(epochs):
    train(Net(), epochs)


def smoothing(epochs):
    train(Net(), epochs, criterion=Smoothing())


def simkd(epochs):
    """A projector behind the student, whose own head is given to the criterion and used for nothing."""

    class SimKD(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(16, 32)

        def forward(self, feature, head):
            projected = self.project(feature)
            return projected, head(projected)

    student, teacher, projector = Net(), Net(32), SimKD()
    teacher.requires_grad_(False)
    data, optimizer = loader("xyi"), sgd(student, projector)
    for epoch in range(1, epochs + 1):
        for x, y, _ in data:
            feats, logits = student(x, is_feat=True)
            with torch.no_grad():
                feats_t, _ = teacher(x, is_feat=True)
            loss = 0 * F.cross_entropy(logits, y)
            projected, logits = projector(feats[-1], teacher.fc)
            loss = loss + F.mse_loss(projected, feats_t[-1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, x, logits)


def auxiliary(epochs):
    """A head on the student's features that comes last, and learns the labels as the student does."""

    class Head(nn.Linear):
        pass

    student, head = Net(), Head(16, 5)
    data, optimizer = loader(), sgd(student, head)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            feats, logits = student(x, is_feat=True)
            loss = F.cross_entropy(logits, y) + F.cross_entropy(head(feats[-1]), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, x, logits)


def wide_feature(epochs):
    """A feature as wide as there are classes, after the logits, which the loss is given divided by a temperature."""

    class Wide(Net):
        def forward(self, x):
            feature = self.body(x[:, 1:])
            return self.fc(feature), feature

    model, data = Wide(CLASSES), loader()
    optimizer = sgd(model)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            logits, _ = model(x)
            optimizer.zero_grad()
            F.cross_entropy(logits / 2, y).backward()
            optimizer.step()
            note("train", epoch, x, logits)


def sobolev(epochs):
    """The teacher comes last, and what it returns has a gradient."""
    student, teacher = Net(), Other()
    data, optimizer = loader(), sgd(student)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            x.requires_grad = True
            logits = student(x)
            logits_t = teacher(x)
            grads = [
                torch.autograd.grad(F.cross_entropy(one, y), x, create_graph=True)[0]
                for one in (logits, logits_t)
            ]
            loss = F.cross_entropy(logits, y) + F.mse_loss(*grads)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, x, logits)


def teacher_first(epochs):
    data, teacher, student = loader(), Other(), Net()
    train(teacher, 1, "teacher", data)
    train(student, epochs, "train", data, teacher=teacher)


def teacher_long(epochs):
    data, teacher, student = loader(), Other(), Net()
    train(teacher, 3, "teacher", data)
    train(student, epochs, "train", data, teacher=teacher)


def unlabelled(epochs, criterion=F.cross_entropy):
    """The student predicts the batch, and then as many samples of another loader, with labels of its own (FixMatch)."""
    model, data = Net(), loader()
    others = iter(DataLoader(Data(), batch_size=BATCH, sampler=[i % N for i in range(20 * N)]))
    optimizer = sgd(model)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            other = next(others)[0][: len(x)]
            logits, of_others = model(x), model(other)
            loss = criterion(logits, y) + criterion(of_others, of_others.detach().argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, x, logits)


def unlabelled_smoothing(epochs):
    unlabelled(epochs, Smoothing())


def shared_head(epochs):
    """The student has the teacher's head, and trains it; the teacher comes last, and is detached."""
    teacher, student = Other(), Net()
    student.fc = teacher.fc
    data, optimizer = loader(), sgd(student)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            logits, logits_t = student(x), teacher(x)
            loss = F.cross_entropy(logits, y) + kd(logits, logits_t.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, x, logits)


def own_loaders(epochs, step=True):
    """A teacher is trained first, on a loader of its own that lives on; or another loader is only looked at."""
    teachers, students = loader(), loader()
    teacher, student = Other(), Net()
    for _ in range(2):
        train(teacher, 1, "teacher" if step else "train", teachers)
        for x, y in () if step else students:
            F.cross_entropy(student(x), y)
    if step:
        train(student, epochs, "train", students)


def own_loaders_looked_at(epochs):
    own_loaders(epochs, step=False)


def mutual(epochs, together=False, second=Other):
    one, two = Net(), second()
    data, optimizers = loader(), [sgd(one, two)] if together else [sgd(one), sgd(two)]
    for epoch in range(1, epochs + 1):
        for x, y in data:
            first, second = one(x), two(x)
            losses = [
                F.cross_entropy(a, y) + kd(a, b.detach()) for a, b in ((first, second), (second, first))
            ]
            for loss, optimizer in zip([sum(losses)] if together else losses, optimizers, strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            note("train", epoch, x, first)


def mutual_together(epochs):
    mutual(epochs, together=True)


def twins(epochs):
    mutual(epochs, second=Net)


def tiled(epochs, how=lambda x: torch.cat([x, x]), first=lambda x: x[: len(x) // 2], labels=True):
    model, data = Net(), loader()
    optimizer = sgd(model)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            both = how(torch.cat([x[:, :1], x[:, 1:] + 0.1 * torch.randn(len(x), 8)], 1))
            logits = model(both)
            loss = F.cross_entropy(logits, how(y)) if labels else F.cross_entropy(first(logits), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, x, first(logits))


def interleaved(epochs):
    tiled(epochs, lambda x: x.repeat_interleave(3, 0), lambda x: x[::3])


def many_rows(epochs):
    tiled(epochs, labels=False)


def distiller(epochs):
    """Two views; a distiller that is one model, called with the target by name, and returns the weak view's logits."""

    class Distiller(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = Net(), Other()

        def forward(self, image, target, epoch):
            weak, strong = (self.student(x) for x in image)
            with torch.no_grad():
                known = self.teacher(image[0])
            losses = {
                "ce": F.cross_entropy(strong, target) + F.cross_entropy(weak, target),
                "kd": kd(weak, known),
            }
            return weak, losses

    model = nn.DataParallel(Distiller())
    data, optimizer = loader("views"), sgd(model.module.student)
    for epoch in range(1, epochs + 1):
        for image, target in data:
            logits, losses = model(image=image, target=target.long(), epoch=epoch)
            optimizer.zero_grad()
            sum(loss.mean() for loss in losses.values()).backward()
            optimizer.step()
            note("train", epoch, image[0], logits)


def losses_alone(epochs):
    """A distiller that returns its losses, and no prediction."""
    noted = []

    class Distiller(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = Net(), Other()

        def forward(self, x, y):
            logits = self.student(x)
            noted.append(logits)
            return Smoothing()(logits, y) + kd(logits, self.teacher(x))

    model, data = Distiller(), loader()
    optimizer = sgd(model.student)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            loss = model(x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, x, noted.pop())


def besides(epochs):
    """A model that returns something narrower after its logits, and a criterion with a layer of its own."""

    class Two(Net):
        def __init__(self):
            super().__init__()
            self.narrow = nn.Linear(16, 2)

        def forward(self, x):
            feature = self.body(x[:, 1:])
            return self.fc(feature), self.narrow(feature)

    class Criterion(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(CLASSES, CLASSES)

        def forward(self, logits, narrow, y):
            return Smoothing()(logits, y) + 0.1 * (
                self.layer(logits).square().mean() + narrow.square().mean()
            )

    model, criterion, data = Two(), Criterion(), loader()
    optimizer = sgd(model, criterion)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            logits, narrow = model(x)
            loss = criterion(logits, narrow, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, x, logits)


def two_backwards(epochs):
    """As DOT has it; and with a second call after the first backward pass."""
    model, data = Net(), loader()
    optimizer = sgd(model)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            optimizer.zero_grad()
            logits = model(x)
            F.cross_entropy(logits, y).backward(retain_graph=True)
            (0.1 * logits.square().mean()).backward()
            (0.1 * F.cross_entropy(model(x + 0.01), y)).backward()
            optimizer.step()
            note("train", epoch, x, logits)


def prefetched(epochs):
    class Prefetcher:
        """Two batches ahead. Each is predicted a second time, after it was recorded."""

        def __init__(self, data):
            self.batches = iter(data)
            self.next = [next(self.batches) for _ in range(3)]

        def __iter__(self):
            while self.next:
                yield self.next.pop(0)
                self.next += [batch for batch in [next(self.batches, None)] if batch is not None]

    # Of one size, so that sizes do not tell them apart.
    model, data = Net(), DataLoader(Data(), batch_size=15, shuffle=True, num_workers=2)
    optimizer = sgd(model)
    for epoch in range(1, epochs + 1):
        for x, y in Prefetcher(data):
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            (0.1 * F.cross_entropy(model(x + 0.01), y)).backward()
            optimizer.step()
            note("train", epoch, x, logits)


@dataclass
class ModelOutput(OrderedDict):
    loss: torch.Tensor
    logits: torch.Tensor

    def __post_init__(self):
        self.update(loss=self.loss, logits=self.logits)


def dicts(epochs):
    """As transformers has it: the loss is the model's, and batches are dicts."""

    class Classifier(Net):
        def forward(self, pixel_values, labels=None, idx=None):
            logits = super().forward(pixel_values)
            return ModelOutput(Smoothing()(logits, labels), logits)

    model, data = Classifier(), loader("dict")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for epoch in range(1, epochs + 1):
        for batch in data:
            output = model(**batch)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            note("train", epoch, batch["pixel_values"], output.logits)


def amp(epochs):
    """bfloat16, a scaler, gradients of two batches accumulated, and logits that are changed in place afterwards."""
    model, data = Net(), loader()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu")
    for epoch in range(1, epochs + 1):
        for step, (x, y) in enumerate(data, 1):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
                note("train", epoch, x, logits)
                logits.div_(2)
                loss = F.cross_entropy(logits, y) / 2
            scaler.scale(loss).backward()
            if step % 2 == 0 or step == len(data):
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()


def compiled(epochs):
    model = torch.compile(Net(), backend="eager")
    train(model, epochs)


def checkpointed(epochs):
    """Parts of the model are computed again within the backward pass."""
    from torch.utils.checkpoint import checkpoint

    class Saving(Net):
        def forward(self, x):
            return self.fc(checkpoint(self.body, x[:, 1:], use_reentrant=False))

    train(Saving(), epochs)


def closure(epochs):
    model, data = Net(), loader()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=3)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            calls = []

            def loss(x=x, y=y, calls=calls):
                optimizer.zero_grad()
                calls.append(model(x))
                loss = F.cross_entropy(calls[-1], y)
                loss.backward()
                return loss

            optimizer.step(loss)
            note("train", epoch, x, calls[0])


def tokens(epochs):
    """Two predictions, as deit has it: one for the labels, the last one for the teacher's."""

    class Deit(Net):
        def __init__(self):
            super().__init__()
            self.distilled = nn.Linear(16, CLASSES)

        def forward(self, x):
            feature = self.body(x[:, 1:])
            return self.fc(feature), self.distilled(feature)

    model, teacher, data = Deit(), Net(), loader()
    optimizer = sgd(model)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            logits, distilled = model(x)
            with torch.no_grad():
                hard = teacher(x).argmax(1)
            loss = F.cross_entropy(logits, y) + F.cross_entropy(distilled, hard)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, x, logits)


def attacked(epochs):
    """An attack on the model in evaluation mode comes before each step, and calls backward()."""
    model, data = Net(), loader()
    optimizer = sgd(model)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            adversary = x.clone().requires_grad_()
            model.eval()
            F.cross_entropy(model(adversary), y).backward()
            model.train()
            adversary = torch.cat([x[:, :1], (x + 0.1 * adversary.grad.sign())[:, 1:]], 1)
            logits = model(adversary)
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, adversary, logits)


def validated(epochs):
    """In the middle of an epoch, before a batch is trained on and behind it, with a gradient and without; an average of weights."""
    from copy import deepcopy

    model, data, held_out = Net(), loader(), DataLoader(Data(), batch_size=BATCH)
    optimizer, ema = sgd(model), deepcopy(model)

    def validate(one):
        one.eval()
        for x, y in held_out:
            nn.CrossEntropyLoss()(one(x), y)
        one.train()

    for epoch in range(1, epochs + 1):
        for step, (x, y) in enumerate(data):
            if step % 2 == 0:
                validate(model)
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, x, logits)
            for mean, now in zip(ema.parameters(), model.parameters(), strict=True):
                mean.data.lerp_(now.data, 0.1)
            validate(ema)
            with torch.no_grad():
                validate(model)
        ema = deepcopy(ema)
        torch.save(model, sys.argv[2] + ".model")  # whole, as many do


def soft(epochs):
    """Labels that are no whole numbers."""
    model, data = Net(), loader()
    optimizer = sgd(model)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            logits = model(x)
            soft = torch.full((len(y), CLASSES), 0.1).scatter_(1, y[:, None], 0.6)
            loss = -(soft * logits.log_softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, x, logits)


def soft_entropy(epochs):
    train(
        Net(), epochs, criterion=lambda logits, y: F.cross_entropy(logits, 0.8 * torch.eye(CLASSES)[y] + 0.04)
    )


def mixup(epochs):
    model, data = Net(), loader()
    optimizer = sgd(model)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            order = torch.randperm(len(x))
            logits = model(0.7 * x + 0.3 * x[order])
            loss = 0.7 * F.cross_entropy(logits, y) + 0.3 * F.cross_entropy(logits, y[order])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, x, logits)


def by_the_step(epochs, per_epoch=False):
    """A learning rate that is made for as many steps as the epochs would have."""
    model, data = Net(), loader()
    optimizer = sgd(model)
    total = epochs + 1 if per_epoch else epochs * len(data)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
    for epoch in range(1, epochs + 1):
        for place, (x, y) in enumerate(data):
            logits = model(x)
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            optimizer.step()
            if place == 0 or not per_epoch:
                scheduler.step()
            note("train", epoch, x, logits)


def by_the_epoch(epochs):
    by_the_step(epochs, per_epoch=True)


def resumed(epochs):
    """An optimizer is given a state that was saved after a step."""
    model, data = Net(), loader()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(torch.zeros(1, 9)).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    for epoch in range(1, epochs + 1):
        for x, y in data:
            logits = model(x)
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            optimizer.step()
            note("train", epoch, x, logits)


def renumbered(epochs):
    """The loop has numbers of its own for the classes."""
    train(Net(), epochs, criterion=lambda logits, y: F.cross_entropy(logits, CLASSES - 1 - y))


def mixup_soft(epochs):
    model, data = Net(), loader()
    for x, y in data:
        order, soft = torch.randperm(len(x)), F.one_hot(y, CLASSES).float()
        F.cross_entropy(model(0.7 * x + 0.3 * x[order]), 0.7 * soft + 0.3 * soft[order]).backward()
        note("train", 1, x, soft)


def mixup_by_hand(epochs):
    """one_hot alone is given the labels, in their own order."""
    model, data = Net(), loader()
    optimizer = sgd(model)
    for epoch in range(1, epochs + 1):
        for x, y in data:
            order, soft = torch.randperm(len(x)), F.one_hot(y, CLASSES)
            logits = model(0.7 * x + 0.3 * x[order])
            loss = -((0.7 * soft + 0.3 * soft[order]) * logits.log_softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, x, logits)


def smoothed(epochs):
    """Soft labels that are smoothed, and the teacher's; one_hot alone is given the labels, and might mix them afterwards."""
    teacher = Net()

    def criterion(logits, y):
        smooth = 0.8 * F.one_hot(y, CLASSES) + 0.04
        return F.cross_entropy(logits, smooth) + F.cross_entropy(
            logits, teacher.fc(torch.randn(len(y), 16)).softmax(1).detach()
        )

    train(Net(), epochs, criterion=criterion)


def hints(epochs):
    """A first phase in which the logits, and the labels, are used for nothing (FitNet's first stage)."""
    student, teacher, regressor = Net(), Other(), nn.Linear(16, 16)
    data, optimizer = loader(), sgd(student.body, regressor)
    for _ in range(1):
        for x, _ in data:
            feats, _ = student(x, is_feat=True)
            loss = F.mse_loss(regressor(feats[-1]), teacher(x, is_feat=True)[0][-1].detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    train(student, epochs, "train", data)


def ranks(epochs):
    """Two processes that are spawned, and DistributedDataParallel."""
    torch.multiprocessing.spawn(rank_of_two, args=(epochs, sys.argv[2]), nprocs=2)


def rank_of_two(rank, epochs, record):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{record}.group", rank=rank, world_size=2
    )
    sampler = torch.utils.data.DistributedSampler(Data(), 2, rank)
    data = DataLoader(Data(), batch_size=BATCH // 2, sampler=sampler)
    model = nn.parallel.DistributedDataParallel(Net())
    optimizer = sgd(model)
    for epoch in range(1, epochs + 1):
        sampler.set_epoch(epoch)
        for x, y in data:
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("train", epoch, x, logits)
    with open(f"{record}.{rank}", "wb") as file:
        pickle.dump(NOTES, file)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.manual_seed(1)
    name, record, *epochs = sys.argv[1:]
    try:
        globals()[name](int(*epochs or ["4"]))
    finally:
        with open(record, "wb") as file:
            pickle.dump(NOTES, file)
