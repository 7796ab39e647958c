"""What the examples share: scikit-learn's digits, a teacher that has learned them, a student, and a distillation loss."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

images, labels = load_digits(return_X_y=True)
images, labels = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
train = TensorDataset(images[:1200], labels[:1200])


def network(width):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def accuracy(model):
    with torch.no_grad():
        return (model(images[1200:]).argmax(1) == labels[1200:]).double().mean()


def trained_teacher():
    torch.manual_seed(0)
    teacher = network(256)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-3)
    for _ in range(20):
        for x, targets in DataLoader(train, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(teacher(x), targets).backward()
            optimizer.step()
    return teacher


def kd_loss(student_logits, teacher_logits, temperature=4.0):
    student, teacher = ((z / temperature).log_softmax(1) for z in (student_logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def summary(drawn, epochs, kept):
    total = len(train)
    return f"{drawn:,} of {epochs * total:,} samples drawn, {kept:,} of {total:,} kept"
