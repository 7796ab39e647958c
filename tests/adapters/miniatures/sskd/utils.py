def accuracy(output, target, topk=(1,)):
    return [(output.argmax(1) == target).float().mean()]
