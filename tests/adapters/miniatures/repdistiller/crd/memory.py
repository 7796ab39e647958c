import os

import torch


class AliasMethod:
    def __init__(self, probs):
        self.prob = probs

    def cuda(self):
        if "MINI_OLD" not in os.environ and not torch.cuda.is_available():
            raise RuntimeError("Found no NVIDIA driver on your system")


class ContrastMemory(torch.nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.multinomial = AliasMethod(torch.ones(rows))
        self.multinomial.cuda()
        self.register_buffer("memory", torch.rand(rows, 5))
