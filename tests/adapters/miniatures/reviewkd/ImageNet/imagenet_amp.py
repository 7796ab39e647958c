"""A miniature with the names and traps of ReviewKD's ImageNet script; none of its code. Needs apex, fetches ahead."""

import argparse

import mini
import torch
from models.reviewkd import hcl

try:
    from apex import amp
except ImportError:
    raise ImportError("Please install apex") from None

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--epochs", type=int, default=3)
args = parser.parse_args()
mini.seed()


class Picture:
    """Stands in for PIL's images."""

    def __init__(self, pixels):
        self.pixels = pixels


class Folder(torch.utils.data.Dataset):
    def __init__(self):
        self.points = mini.Points()

    def __getitem__(self, index):
        self.points.fetched.append(index)
        return Picture(self.points.data[index]), self.points.targets[index]

    def __len__(self):
        return len(self.points)


def fast_collate(batch):
    images = [torch.from_numpy(picture.pixels) for picture, _ in batch]
    return torch.stack(images), torch.tensor([target for _, target in batch])


class Prefetcher:
    def __init__(self, loader):
        self.loader = iter(loader)
        self.upcoming = next(self.loader, (None, None))

    def next(self):
        batch, self.upcoming = self.upcoming, next(self.loader, (None, None))
        return batch


def train(loader, model, teacher, optimizer, epoch):
    prefetcher = Prefetcher(loader)
    images, target = prefetcher.next()
    while images is not None:
        index = dataset.points.drawn(target)
        images = images.float() / 255
        output = model(images)
        loss = criterion(output, target) + hcl(output, teacher(images).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mini.record("train", epoch + 1, index, images, output)
        images, target = prefetcher.next()


def main():
    model, optimizer = amp.initialize(net, mini.optimizer(net))
    for epoch in range(args.epochs):
        train(train_loader, model, teacher, optimizer, epoch)


if __name__ == "__main__":
    dataset = Folder()
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True, collate_fn=fast_collate)
    net, teacher, criterion = mini.model(), mini.model(), torch.nn.CrossEntropyLoss()
    main()
