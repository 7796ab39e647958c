class DataPrefetcher:
    """Begins a pass when it is made, which is never gone through; and is one batch ahead."""

    def __init__(self, loader):
        self.loader, self.batches = loader, iter(loader)

    def preload(self):
        self.following = next(self.batches, None)

    def __iter__(self):
        self.batches = iter(self.loader)
        self.preload()
        return self

    def __next__(self):
        batch = self.following
        if batch is None:
            raise StopIteration
        self.preload()
        return batch

    def __len__(self):
        return len(self.loader)
