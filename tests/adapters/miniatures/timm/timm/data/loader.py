import torch


class PrefetchLoader:
    """A batch ahead of the loop, and with other pixels than the loader has."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        upcoming = None
        for images, target in self.loader:
            fetched = images.sub(0.5).div_(0.25), target.clone()
            if upcoming is not None:
                yield upcoming
            upcoming = fetched
        yield upcoming

    def __len__(self):
        return len(self.loader)

    @property
    def dataset(self):
        return self.loader.dataset

    @property
    def sampler(self):
        return self.loader.sampler


def create_loader(dataset, batch_size, use_prefetcher=True, distributed=False):
    sampler = torch.utils.data.DistributedSampler(dataset) if distributed else None
    loader = torch.utils.data.DataLoader(dataset, batch_size, shuffle=sampler is None, sampler=sampler)
    return PrefetchLoader(loader) if use_prefetcher else loader
