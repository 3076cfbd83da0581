"""edgestill's parts in a loop of one's own: a small network that has 100 labels learns digits from a large one."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import edgestill as es

digits = load_digits()  # 1,797 images of 8×8 pixels; the last 497 are for testing
images, labels = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(digits.target)
few = torch.where(torch.arange(len(labels)) < 100, labels, -1)  # -1: no label; the teacher alone says what it is


def network(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(32 * width, 10))


def fit(name: str, model: nn.Module, known: torch.Tensor, objective: es.Objective, teacher: nn.Module) -> None:
    optimizer = torch.optim.AdamW([*model.parameters(), *objective.parameters()], lr=0.003)
    for rows in torch.randint(1300, (500, 64)):
        with torch.no_grad(), es.record(teacher, objective.teacher_taps) as taught:
            signal = es.Signal(teacher(images[rows]), taught)
        with es.record(model, objective.student_taps) as taps:
            parts = objective(model(images[rows]), known[rows], signal, taps)
        optimizer.zero_grad()
        parts.loss.backward()
        optimizer.step()
    logits, distance = model(images[1300:]), es.losses.kl(model(images[1300:]), teacher(images[1300:]))
    print(f"{name}: {(logits.argmax(1) == labels[1300:]).float().mean():.1%}, {distance:.2f} nats from the teacher")


teacher, student = network(32), network(2)
with torch.no_grad(), es.record(student, ["3"]) as mine, es.record(teacher, ["3"]) as theirs:
    student(images[:1]), teacher(images[:1])  # the shapes tell which aligner the term needs
hint = {"hint": es.Term(es.losses.hint, student="3", teacher="3", weight=0.1)}
fit("teacher", teacher, labels, es.Objective(alpha=0), teacher)
fit("labels alone", network(2), few, es.Objective(alpha=0), teacher)
fit("student", student, few, es.Objective(alpha=0.9, temperature=4, terms=hint, examples=(mine, theirs)), teacher)
