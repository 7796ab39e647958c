import torch


def accuracy(output, target, topk=(1,)):
    with torch.no_grad():
        best = output.topk(max(topk), 1).indices.t()
        correct = best.eq(target.view(1, -1).expand_as(best))
        return [correct[:k].view(-1).float().sum() * 100 / len(target) for k in topk]
