import torch

from .memory import ContrastMemory


class CRDLoss(torch.nn.Module):
    def __init__(self, n_data):
        super().__init__()
        self.contrast = ContrastMemory(n_data)

    def forward(self, f_s, f_t, index, contrast_idx):
        memory = self.contrast.memory
        scores = (memory[contrast_idx] * f_s.unsqueeze(1)).sum(-1)
        memory[index] = 0.5 * memory[index] + 0.5 * f_t.detach()
        return torch.nn.functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))
