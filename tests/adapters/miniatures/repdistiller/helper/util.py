import torch


def accuracy(output, target, topk=(1,)):
    with torch.no_grad():
        if target.ndim == 2:  # as after mixup
            target = target.argmax(1)
        best = output.topk(max(topk), 1).indices
        right = best == target.unsqueeze(1)
        return [right[:, :k].any(1).float().mean() * 100 for k in topk]
