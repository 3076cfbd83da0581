"""edgestill's parts in a loop of one's own: a small network that has 100 labels learns digits from a large one."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import edgestill as es

digits = load_digits()  # 1,797 images of 8×8 pixels; the last 497 are for testing
images, labels = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(digits.target)
few = torch.where(torch.arange(len(labels)) < 100, labels, -1)  # -1: no label, and only the teacher says what it is


def network(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * width, 10))


def fit(name: str, model: nn.Module, known: torch.Tensor, objective: es.Objective, teacher: nn.Module) -> None:
    optimizer = torch.optim.AdamW([*model.parameters(), *objective.parameters()], lr=0.005)
    for rows in torch.randint(1300, (300, 64)):
        with torch.no_grad(), es.record(teacher, objective.teacher_taps) as taught:
            signal = es.Signal(teacher(images[rows]), taught)
        with es.record(model, objective.student_taps) as taps:
            parts = objective(model(images[rows]), known[rows], signal, taps)
        optimizer.zero_grad()
        parts.loss.backward()
        optimizer.step()
    logits, answers = model(images[1300:]), teacher(images[1300:])
    right, distance = (logits.argmax(1) == labels[1300:]).float().mean(), es.losses.kl(logits, answers)
    print(f"{name}: {right:.1%} right, {distance:.2f} nats from the teacher")


teacher = network(32)
attention = {"attention": es.Term(es.losses.attention_transfer, student="1", teacher="1", weight=1.0)}
fit("teacher", teacher, labels, es.Objective(alpha=0), teacher)
fit("labels alone", network(4), few, es.Objective(alpha=0), teacher)
fit("student", network(4), few, es.Objective(alpha=0.9, temperature=4, terms=attention), teacher)
