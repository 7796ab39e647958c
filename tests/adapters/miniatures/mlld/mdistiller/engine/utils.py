import torch


def accuracy(output, target, topk=(1,)):
    with torch.no_grad():
        return [(output.argmax(1) == target).float().mean()]


def save_checkpoint(obj, path):
    torch.save(obj, path)


def load_checkpoint(path):
    return torch.load(path, map_location="cpu")
