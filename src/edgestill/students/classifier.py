"""Classifier distillation (SimKD): the student's last maps, a projector that stays, the teacher's classifier.

B batch, C channels, H height, W width, D features, K classes.
"""

import copy
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgestill.errors import UserError, first_line
from edgestill.models import Model, example, forward
from edgestill.students.plain import base_source


@dataclass(frozen=True)
class Head:
    """Where a model's last maps [B, C, H, W] and the linear layer behind their mean over positions are."""

    stage: str
    classifier: str
    channels: int
    size: tuple[int, int]
    classes: int
    bias: bool


@dataclass(frozen=True)
class Joint:
    """Where a student's body meets its teacher's classifier; `join` makes a student of it."""

    student: Head
    teacher: Head
    reduction: int

    @property
    def student_tap(self) -> str:
        """The projector's path in the joined student: what the term compares with the teacher's `teacher_tap`."""
        return f"{self.student.stage}.1"

    @property
    def teacher_tap(self) -> str:
        """The path of the teacher's last maps."""
        return self.teacher.stage

    @property
    def size(self) -> tuple[int, int]:
        """H, W of the projector's maps: each the smaller of the two models'. Where the teacher's are larger, the term
        averages them down to this, as the authors do."""
        return min(self.student.size[0], self.teacher.size[0]), min(self.student.size[1], self.teacher.size[1])


def classifier_student(
    student: nn.Module,
    teacher: nn.Module,
    student_example: Tensor,
    teacher_example: Tensor,
    *,
    reduction: int = 2,
    copy: bool = True,
) -> nn.Module:
    """The student's last maps -> projector [B, C', H, W] -> mean over positions -> the teacher's classifier.

    A plain copy of the student; the student itself stays as it is. The projector is learned from the teacher's last
    maps by their mean squared difference (`hint`). It stays in the student: its bytes and latency count.

    Args:
        student_example, teacher_example: one input batch of each model.
        reduction: the projector is C'/reduction wide inside, C' being the teacher's channels.
        copy: the classifier has the teacher's weights, frozen. Without: fresh ones that train, for a baseline of the
            same architecture.

    Raises UserError for a model whose classifier is not a linear layer on the mean of its last maps over their
    positions: a transformer, a norm or an activation in between.

    Source: Chen et al. 2022, arXiv 2203.14001, section 3.2; author code DefangChen/SimKD, models/util.py.

    >>> def network(width):
    ...     maps = (nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    ...     return nn.Sequential(*maps, nn.Linear(width, 10))
    >>> images = torch.zeros(2, 1, 8, 8)
    >>> module = classifier_student(network(4), network(16), images, images)
    >>> module(images).shape, module[4].in_features, module[4].weight.requires_grad
    (torch.Size([2, 10]), 16, False)
    """
    joint = find_joint(student, teacher, student_example, teacher_example, reduction=reduction)
    return join(student, teacher, joint, student_example, copy_classifier=copy)


def classifier_model(student: Model, teacher: Model, *, reduction: int = 2, copy: bool = True) -> tuple[Model, Joint]:
    """`classifier_student` of loaded models, with the source that builds it again, and the taps of its term."""
    probes = (example(student.input, 2), example(teacher.input, 2))
    joint = find_joint(student.module, teacher.module, *probes, reduction=reduction)
    module = join(student.module, teacher.module, joint, probes[0], copy_classifier=copy)
    name, text = source(student, joint)
    return Model(module, f"model.py:{name}", {}, student.input, source=text), joint


def find_joint(
    student: nn.Module, teacher: nn.Module, student_example: Tensor, teacher_example: Tensor, *, reduction: int = 2
) -> Joint:
    """What `join` needs to know of the two models. Raises UserError where they cannot be joined."""
    joint = Joint(
        find_head(student, student_example, "student"), find_head(teacher, teacher_example, "teacher"), reduction
    )
    if joint.student.classes != joint.teacher.classes:
        raise UserError(
            "the teacher's classifier needs a student of as many classes; "
            f"the student has {joint.student.classes}, the teacher {joint.teacher.classes}"
        )
    if not 1 <= reduction <= joint.teacher.channels:
        raise UserError(f"reduction must lie in 1…{joint.teacher.channels}, the teacher's channels; {reduction} came")
    return joint


def join(
    student: nn.Module, teacher: nn.Module, joint: Joint, student_example: Tensor, *, copy_classifier: bool = True
) -> nn.Module:
    """A copy of the student with projector and classifier. Draws the same random numbers whether it copies or not."""
    head, channels = joint.student, joint.teacher.channels
    module = copy.deepcopy(student)
    device = next(module.parameters()).device
    projector = _projector(joint).to(device)
    classifier = nn.Linear(channels, joint.teacher.classes, bias=joint.teacher.bias).to(device)
    if copy_classifier:
        classifier.load_state_dict(teacher.get_submodule(joint.teacher.classifier).state_dict())
        classifier.requires_grad_(False)
    module.set_submodule(head.stage, nn.Sequential(module.get_submodule(head.stage), projector))
    module.set_submodule(head.classifier, classifier)
    with _evaluating(module), torch.no_grad():
        try:
            found = forward(module, student_example.to(device)).shape
        except Exception as error:
            raise UserError(
                f"{type(student).__name__} does not run with a projector behind {head.stage!r} and another classifier "
                f"at {head.classifier!r}: {first_line(error)}"
            ) from error
    if found != (len(student_example), joint.teacher.classes):
        raise UserError(
            f"{type(student).__name__} must put out {joint.teacher.classes} logits with the teacher's classifier at "
            f"{head.classifier!r}; {[*found[1:]]} came"
        )
    return module


def _projector(joint: Joint) -> nn.Sequential:
    """Convolutions, each with batch norm and ReLU, behind pooling where the teacher's maps are smaller. `source` writes
    the same layers."""
    layers: list[nn.Module] = []
    if joint.size != joint.student.size:
        layers.append(nn.AdaptiveAvgPool2d(joint.size))
    for inputs, outputs, kernel in _convolutions(joint):
        layers.append(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _convolutions(joint: Joint) -> list[tuple[int, int, int]]:
    """Input channels, output channels and kernel size of each."""
    inputs, outputs = joint.student.channels, joint.teacher.channels
    inside = outputs // joint.reduction
    return [(inputs, inside, 1), (inside, inside, 3), (inside, outputs, 1)]


def find_head(model: nn.Module, example: Tensor, role: str) -> Head:
    """The last maps and the classifier of a model, by what it does with random images of the example's shape: the
    linear layer that puts out the logits, and of the modules that run once the one whose mean over positions this
    layer takes. Of several, that of the highest resolution, and of these the last to end.

    Raises UserError, which names the `role`, where there are none.

    >>> find_head(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2)), torch.zeros(1, 1, 4, 4), "student")
    Traceback (most recent call last):
    edgestill.errors.UserError: classifier: teacher needs a student whose classifier is a linear layer on the mean of \
its last maps [B, C, H, W] over their positions; '2' of Sequential takes 16 features, and no maps have this mean
    """
    images = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))  # zeros tell nothing apart
    runs: Counter[str] = Counter()
    means: dict[str, tuple[tuple[int, int], Tensor]] = {}
    last: tuple[str, nn.Linear, Tensor] | None = None

    def note(name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal last
        runs[name] += 1
        if isinstance(output, Tensor) and output.dim() == 4:
            means.pop(name, None)
            means[name] = ((output.shape[2], output.shape[3]), output.mean((2, 3)))
        if isinstance(module, nn.Linear) and inputs and isinstance(inputs[0], Tensor):
            last = (name, module, inputs[0].clone())

    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name, module, inputs, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with _evaluating(model), torch.no_grad():
            logits = forward(model, images.to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    required = (
        f"classifier: teacher needs a {role} whose classifier is a linear layer on the mean of its last maps "
        "[B, C, H, W] over their positions"
    )
    if last is None or not _close(functional.linear(last[2], last[1].weight, last[1].bias), logits):
        raise UserError(f"{required}; no torch.nn.Linear puts out the logits of {type(model).__name__}")
    name, classifier, features = last
    fitting = [(path, size) for path, (size, mean) in means.items() if runs[path] == 1 and _close(mean, features)]
    if not fitting:
        raise UserError(
            f"{required}; {name!r} of {type(model).__name__} takes {features.shape[-1]} features, "
            "and no maps have this mean"
        )
    highest = max(size[0] * size[1] for _, size in fitting)
    stage, size = [(path, size) for path, size in fitting if size[0] * size[1] == highest][-1]
    return Head(stage, name, features.shape[-1], size, classifier.out_features, classifier.bias is not None)


def _close(found: Tensor, expected: Tensor) -> bool:
    """Equal up to the rounding of float32."""
    return found.shape == expected.shape and torch.allclose(
        found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; each module's own mode returns at the end."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def source(student: Model, joint: Joint) -> tuple[str, str]:
    """A function's name, and the text of a `model.py` whose function of this name builds the joined student from sizes
    alone, with torch and what the student itself needs: the student's own file, where it has one, comes first."""
    before, name, made = base_source(student)
    function = re.sub(r"\W", "_", name) + "_with_projector"
    head = joint.student
    layers = [f"nn.AdaptiveAvgPool2d({joint.size})"] if joint.size != head.size else []
    for inputs, outputs, kernel in _convolutions(joint):
        layers.append(f"nn.Conv2d({inputs}, {outputs}, {kernel}, padding={kernel // 2}, bias=False)")
        layers += [f"nn.BatchNorm2d({outputs})", "nn.ReLU(inplace=True)"]
    lines = [
        f"def {function}():",
        f'    """{name} with a projector behind {head.stage} and a classifier of its teacher\'s width.',
        "",
        '    Written by edgestill. Classifier distillation (SimKD): Chen et al. 2022, arXiv 2203.14001."""',
        "    from torch import nn",
        "",
        *(f"    {line}" for line in made),
        "    projector = nn.Sequential(",
        *(f"        {layer}," for layer in layers),
        "    )",
        f"    classifier = nn.Linear({joint.teacher.channels}, {joint.teacher.classes}, bias={joint.teacher.bias})",
        f"    module.set_submodule({head.stage!r}, nn.Sequential(module.get_submodule({head.stage!r}), projector))",
        f"    module.set_submodule({head.classifier!r}, classifier)",
        "    return module",
    ]
    return function, f"{before.rstrip()}\n\n\n" + "\n".join(lines) + "\n"
