"""Which technique a job begins with: from plain facts to choices, each with why, and with what was measured of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METHODS = "2026-11-23-methods.md"
RESNET8 = "2026-11-22-cifar10-resnet8.md"
RESNET8_RESULT = "2026-11-22-cifar10-resnet8.json"
DEVICE = "2026-11-29-device.md"
SST2 = "2026-11-29-sst2.md"
STORIES = "2026-11-29-stories260k.md"
PYTHON = "2026-11-29-python-code.md"

GAP = 11.0
"""Parameters of the teacher over the student's where methods were compared on images: 853,018 over 77,946."""
FAR = 2
"""How many times that gap is no longer like it."""
FEW_BLOCKS = 1 / 3
"""Share of the teacher's blocks at which, on SST-2, no way of asking the teacher was better than none."""
FEW_LABELS = 50
"""Labels a class below which the last phase does not learn from labels alone."""


@dataclass(frozen=True)
class Measured:
    """A number as it stands in a file of `benchmarks/results/`, in a line that has the words `row`."""

    file: str
    row: str
    number: str


@dataclass(frozen=True)
class Choice:
    """What a recipe says at a key, and why; `measured` holds every number that the reason quotes."""

    key: str
    value: Any
    reason: str
    measured: tuple[Measured, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What is known of a job before it begins.

    Attributes:
        task: as a recipe names it.
        samples, labelled: of the training split, held-out ones left out; of a language model blocks of tokens.
        classes: of the data; 0 where answers are no classes.
        numbers: whether labels of texts are numbers.
        side: of the images, in pixels.
        parameters: of the teacher.
        wanted: parameters that the budget's size allows; None where it has no size.
        blocks: share of the teacher's blocks that the deepest student within `wanted` keeps; None where unknown.
        cuts: the search's `from_teacher`.
        attention: whether the teacher has attention whose queries, keys and values can be tapped.
        relation_heads: into how many heads those of teacher and of all students can be cut alike.
        maps: whether it has stages of feature maps [B, C, H, W].
        last_stage: the path of the last of these.
        fresh: whether the teacher's classifier is new, and to be fitted first.
        runtime: the budget's.
    """

    task: str
    samples: int
    labelled: int
    parameters: int
    cuts: Mapping[str, Any]
    classes: int = 0
    numbers: bool = False
    side: int | None = None
    wanted: float | None = None
    blocks: float | None = None
    attention: bool = False
    relation_heads: int = 1
    maps: bool = False
    last_stage: str | None = None
    fresh: bool = False
    runtime: str | None = None

    @property
    def images(self) -> bool:
        return self.task == "image-classification"

    @property
    def tokens(self) -> bool:
        """Whether answers are tokens."""
        return self.task in ("language-modeling", "instruction")

    @property
    def gap(self) -> float | None:
        """How many times fewer parameters the budget's size allows than the teacher has."""
        return None if self.wanted is None else self.parameters / self.wanted


def advise(facts: Facts) -> list[Choice]:
    """The choices for a job, in the order in which a recipe has them. Where nothing was measured that is like it, the
    reason says so.

    >>> facts = Facts("language-modeling", 800, 800, 260_032, {"depth": [2, 3]})
    >>> [technique["name"] for technique in advise(facts)[1].value]
    ['kl', 'skewed_kl']
    """
    return [
        *([_fitted()] if facts.fresh else ()),
        _students(facts),
        _techniques(facts),
        _signal(facts),
        _phases(facts),
        _training(facts),
        _comparison(facts),
        _files(facts),
    ]


def _fitted() -> Choice:
    return Choice(
        "teacher.fit", {"epochs": 3, "lr": 5e-5, "keep": True},
        "The teacher's classifier is new: it is fitted first, as was MiniLM for SST-2, to 88.58%.",
        (Measured(SST2, "Teacher:", "88.58%"),),
    )  # fmt: skip


def _students(facts: Facts) -> Choice:
    key, value = "student.search.from_teacher", dict(facts.cuts)
    if facts.tokens:
        return Choice(
            key, value,
            "Students begin with their teacher's weights: half of a small Llama's blocks ended at 1.3788 bits per byte "
            "without the teacher's word, from random weights at 1.5383.",
            (Measured(STORIES, "| baseline |", "1.3788"), Measured(STORIES, "| scratch |", "1.5383")),
        )  # fmt: skip
    if not facts.images:
        return Choice(
            key, value,
            "Students begin with their teacher's weights: three of MiniLM's six blocks reached 87.22% on SST-2 without "
            "the teacher's word, from random weights 78.35%: more than any technique brings.",
            (Measured(SST2, "| 3 | baseline |", "87.22%"), Measured(SST2, "| 3 | scratch |", "78.35%")),
        )  # fmt: skip
    return Choice(
        key, value,
        "Students begin with their teacher's weights. Whether that is better for images than random ones, behind a "
        "distillation, was not measured here; the run's arm `scratch` tells.",
    )  # fmt: skip


def _techniques(facts: Facts) -> Choice:
    if facts.images:
        techniques, reason, measured = _of_images(facts)
    elif facts.tokens:
        techniques, reason, measured = _of_tokens()
    else:
        techniques, reason, measured = _of_texts(facts)
    return Choice("student.search.distill", techniques, reason, measured)


Found = tuple[list[dict[str, Any]], str, tuple[Measured, ...]]


def _of_images(facts: Facts) -> Found:
    kl: dict[str, Any] = {"name": "kl", "loss": "kl"}
    if facts.maps and facts.last_stage is not None:
        return _of_maps(facts, kl, facts.last_stage)
    if facts.attention:
        return (
            [kl, _relations(facts)],
            "Transformers of images were not measured here. Tried are kl, the usual one, and MiniLMv2's relations, "
            "which do not differ from it on texts: -0.05% [-0.99%, +0.88%].",
            _RELATIONS,
        )
    return (
        [kl, {"name": "reverse_kl", "loss": "reverse_kl"}],
        "The teacher has no stages and no attention that terms could learn from. Of what learns from answers alone "
        "these two do not differ beyond noise: reverse_kl is -0.53 points from kl [-2.18, +1.12].",
        (Measured(METHODS, "| reverse_kl |", "-0.53"), Measured(METHODS, "| reverse_kl |", "[-2.18, +1.12]")),
    )


def _of_maps(facts: Facts, kl: dict[str, Any], last: str) -> Found:
    """Of a convolutional teacher: what was compared, at the gap at which it was, or at a larger one."""
    one = {"student": [last], "teacher": [last]}
    cka = {"name": "cka", "loss": "kl", "terms": [{"loss": "cka", **one, "weight": "balanced"}]}
    transfer = {
        "name": "attention_transfer",
        "loss": "kl",
        "terms": [{"loss": "attention_transfer", "weight": "balanced"}],
    }
    ranked = (
        Measured(METHODS, "| kl + cka |", "+2.44"),
        Measured(METHODS, "| kl + cka |", "[+0.88, +4.00]"),
        Measured(RESNET8_RESULT, '"parameters"', "853018"),
        Measured(RESNET8_RESULT, '"parameters"', "77946"),
    )
    where = "of ResNet-56 into a ResNet-8 of random weights, 11 times smaller; not measured here on cut students"
    if facts.gap is not None and facts.gap > FAR * GAP:
        return (
            [cka, kl],
            f"The budget allows {facts.gap:.0f} times fewer parameters than the teacher has, a larger gap than was "
            "measured here, so that plain kl is tried beside the one method that was ranked above it: cka, +2.44 "
            f"points [+0.88, +4.00] ({where}).",
            ranked,
        )
    return (
        [transfer, cka],
        "Of 12 methods these were best beside kl: attention_transfer has the highest mean, +3.00 points over kl "
        f"[-0.23, +6.23], cka is the only one ranked above kl, +2.44 [+0.88, +4.00] ({where}). Their difference is "
        "within noise, so that both are tried.",
        (
            Measured(METHODS, "| kl + attention_transfer |", "+3.00"),
            Measured(METHODS, "| kl + attention_transfer |", "[-0.23, +6.23]"),
            *ranked,
        ),
    )


_RELATIONS = (
    Measured(SST2, "| 3 | minilmv2 − kl |", "-0.05%"),
    Measured(SST2, "| 3 | minilmv2 − kl |", "[-0.99%, +0.88%]"),
)


def _relations(facts: Facts, loss: str = "kl") -> dict[str, Any]:
    term = {"loss": "attention_relation", "options": {"heads": facts.relation_heads}, "weight": 1}
    return {"name": "relations", "loss": loss, "terms": [term]}


def _of_texts(facts: Facts) -> Found:
    embeds = facts.task == "sentence-embedding"
    loss = "regression" if facts.numbers and not embeds else "kl"
    plain = {"name": loss, "loss": loss}
    if not facts.attention:
        other = {"name": f"{loss}-half", "loss": loss, "alpha": 0.5}
        return (
            [plain, other],
            "The teacher has no attention that terms could learn from; how much its answers should weigh was not "
            "measured here, so that 0.9 and 0.5 are tried.",
            (),
        )
    both = [plain, _relations(facts, loss)]
    said = (
        "Soft labels alone (87.46%) and MiniLMv2's relations beside them (87.90%) do not differ beyond noise, -0.05% "
        "[-0.99%, +0.88%] over sentences of SST-2 at half of the blocks, so that both are tried; hidden states and "
        "attentions at weight 1 were below both, 85.81%."
    )
    measured: tuple[Measured, ...] = (
        Measured(SST2, "| 3 | kl |", "87.46%"),
        Measured(SST2, "| 3 | minilmv2 |", "87.90%"),
        *_RELATIONS,
        Measured(SST2, "| 3 | tinybert |", "85.81%"),
    )
    if facts.numbers or embeds:
        what = "numbers" if not embeds else "embeddings"
        said += f" That is of classes; {what} were not measured here."
    if facts.blocks is not None and facts.blocks <= FEW_BLOCKS:
        said += (
            " The budget leaves few of the teacher's blocks: at two of six its word brought nothing, -0.33% [-1.32%, "
            "+0.66%] against no teacher, at four +1.59%: look at the run's baseline."
        )
        measured += (
            Measured(SST2, "| 2 | minilmv2 − baseline |", "-0.33%"),
            Measured(SST2, "| 2 | minilmv2 − baseline |", "[-1.32%, +0.66%]"),
            Measured(SST2, "| 4 | minilmv2 − baseline |", "+1.59%"),
        )
    return both, said, measured


def _of_tokens() -> Found:
    return (
        [{"name": "kl", "loss": "kl"}, {"name": "skewed_kl", "loss": "skewed_kl"}],
        "kl was measured: -0.0227 bits per byte against no teacher at half of a Llama's blocks, -0.0750 from random "
        "weights. Beside it skewed_kl, which its authors (arXiv 2402.03898) find better on replies; that was not "
        "measured here.",
        (
            Measured(STORIES, "Student minus baseline", "-0.0227"),
            Measured(PYTHON, "Student minus baseline", "-0.0750"),
        ),
    )


def _signal(facts: Facts) -> Choice:
    key = "distill"
    if facts.tokens:
        return Choice(
            key, {"alpha": 0.9, "temperature": 1.0},
            "As where -0.0227 bits per byte were gained; other values were not measured here.",
            (Measured(STORIES, "Student minus baseline", "-0.0227"),),
        )  # fmt: skip
    if facts.task == "sentence-embedding":
        return Choice(
            key, {"alpha": 0.9, "temperature": 0.05},
            "The usual temperature of cosines between texts; not measured here.",
        )  # fmt: skip
    if facts.numbers:
        return Choice(key, {"alpha": 0.9}, "How much the teacher's numbers should weigh was not measured here.")
    if facts.images:
        return Choice(
            key, {"alpha": 0.9, "temperature": 4.0},
            "As where kl reached 73.11% and labels alone 69.82%; other values were not measured here.",
            (Measured(METHODS, "| kl |", "73.11%"), Measured(METHODS, "| baseline |", "69.82%")),
        )  # fmt: skip
    return Choice(
        key, {"alpha": 0.9, "temperature": 4.0},
        "As where kl reached 87.46% and labels alone 87.22%; other values were not measured here.",
        (Measured(SST2, "| 3 | kl |", "87.46%"), Measured(SST2, "| 3 | baseline |", "87.22%")),
    )  # fmt: skip


def _phases(facts: Facts) -> Choice:
    key = "phases"
    if facts.task == "sentence-embedding":
        return Choice(
            key, [{"name": "distill", "share": 1.0}],
            "Texts to embed have no classes by which they would be ordered; other phases were not measured here.",
        )  # fmt: skip
    value: list[dict[str, Any]] = [
        {"name": "warmup", "share": 0.2, "order": "easiest-first"},
        {"name": "distill", "share": 0.6},
        {"name": "finetune", "share": 0.2, "alpha": 0.0, "terms": []},
    ]
    few = facts.labelled < facts.samples / 2 or 0 < facts.labelled < FEW_LABELS * facts.classes
    if few and not facts.tokens:
        value[-1] = {"name": "finetune", "share": 0.2, "alpha": 0.5}
        return Choice(
            key, value,
            f"Labels are few ({facts.labelled:,} of {facts.samples:,} samples): the last phase keeps half of its "
            "weight on the teacher, which labels the rest. Not measured here.",
        )  # fmt: skip
    if facts.images:
        return Choice(
            key, value,
            "Easiest images first, then all, then the task itself: with these a ResNet-8 gained +1.66 points; what "
            "each phase adds was not measured here.",
            (Measured(RESNET8, "gained", "+1.66"),),
        )  # fmt: skip
    if facts.tokens:
        return Choice(
            key, value,
            "Easiest texts first, then all, then the task itself: with these -0.0227 bits per byte were gained; what "
            "each phase adds was not measured here.",
            (Measured(STORIES, "Student minus baseline", "-0.0227"),),
        )  # fmt: skip
    return Choice(
        key, value,
        "Easiest texts first, then all, then the task itself: with these three of MiniLM's six blocks reached 87.90%; "
        "what each phase adds was not measured here.",
        (Measured(SST2, "| 3 | minilmv2 |", "87.90%"),),
    )  # fmt: skip


def _training(facts: Facts) -> Choice:
    key, batch = "train", batch_of(facts)
    if facts.images:
        value: dict[str, Any] = {"epochs": _epochs(facts.samples, 30 * 45_000, 10, 200), "batch_size": batch}
        value |= {"optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.01} if facts.attention else {"lr": 0.05}
        reason = (
            "As many images as the 30 epochs of 45,000 in which a ResNet-8 reached 86.15 %, within 10 to 200 epochs. "
            "The rate for students with their teacher's weights was not measured here. Add `flip: true` to the views "
            "where a mirrored image stays of its class."
        )
        if facts.side is not None and facts.side >= 8:
            value["views"] = {"crop": facts.side // 8}
        return Choice(key, value, reason, (Measured(RESNET8, "| student (PyTorch, 1 seed) |", "86.15 %"),))
    if facts.tokens:
        small = facts.parameters < 10_000_000
        value = {"epochs": 6, "batch_size": batch, "lr": 2e-3 if small else 2e-4}
        return Choice(
            key, value,
            "Six epochs at a rate of 2e-3 gave a Llama of 0.26 M parameters' half 1.3562 bits per byte; a teacher of "
            "10 M and more gets a tenth of the rate, which was not measured here.",
            (Measured(STORIES, "| student |", "1.3562"),),
        )  # fmt: skip
    value = {"epochs": _epochs(facts.samples, 2 * 6_920, 1, 20), "batch_size": batch, "lr": 1e-4}
    if facts.parameters < 1_000_000:
        value["lr"] = 2e-3
    return Choice(
        key, value,
        "As many texts as the two epochs of 6,920 at a rate of 1e-4 in which half of MiniLM's blocks reached 87.90%, "
        "within 1 to 20 epochs; less than a million parameters get 2e-3, which was not measured here.",
        (Measured(SST2, "| 3 | minilmv2 |", "87.90%"),),
    )  # fmt: skip


def batch_of(facts: Facts) -> int:
    """Samples a step: the task's usual number, less where an epoch would have fewer than eight steps."""
    usual = 128 if facts.images else 16 if facts.tokens else 32
    while usual > 4 and usual * 8 > facts.samples:
        usual //= 2
    return usual


def _epochs(samples: int, seen: int, least: int, most: int) -> int:
    return min(most, max(least, round(seen / max(samples, 1))))


def _comparison(facts: Facts) -> Choice:
    key, value = "compare", {"seeds": 3}
    if facts.task == "sentence-embedding" and not facts.labelled:
        return Choice(
            key, {**value, "baseline": False, "scratch": False},
            "Without labels no arm learns without the teacher, and what it was worth was not measured here.",
        )  # fmt: skip
    if facts.images:
        return Choice(
            key, value,
            "Three seeds: those of plain kl differed by 0.71 points (standard deviation), of kl + hint by 3.11.",
            (Measured(METHODS, "| kl |", "0.71"), Measured(METHODS, "| kl + hint |", "3.11")),
        )  # fmt: skip
    if facts.tokens:
        return Choice(
            key, value,
            "Three seeds: with them -0.0227 bits per byte were told from nothing, [-0.0239, -0.0214].",
            (
                Measured(STORIES, "Student minus baseline", "-0.0227"),
                Measured(STORIES, "Student minus baseline", "[-0.0239, -0.0214]"),
            ),
        )  # fmt: skip
    return Choice(
        key, value, "Three seeds: those of plain kl differed by 0.57% (standard deviation), as much as arms do.",
        (Measured(SST2, "| 3 | kl |", "0.57%"),),
    )  # fmt: skip


WEIGHT_BYTES = {
    "onnx-int8": 1.11,
    "onnx-int8-dynamic": 1.11,
    "executorch-int8": 1.26,
    "openvino-int8": 1.95,
    "litert-int8": 1.2,
}
"""Bytes of a file over the parameters in it, of ResNet-8 with 77,946 of them on the page of all formats; less of larger
models."""
_ROWS = {
    "executorch": ("executorch-int8", "97,704"),
    "openvino": ("openvino-int8", "151,957"),
    "litert": ("litert-int8", "93,184"),
}


def format_of(task: str, runtime: str | None) -> str:
    """The smallest format of a task's files that a runtime runs; ONNX Runtime's where none is said."""
    if task != "image-classification":
        return "onnx-int8-dynamic"
    return _ROWS[runtime][0] if runtime in _ROWS else "onnx-int8"


def _files(facts: Facts) -> Choice:
    key, name = "export", format_of(facts.task, facts.runtime)
    if facts.images and facts.runtime in _ROWS:
        size = _ROWS[facts.runtime][1]
        return Choice(
            key, [name],
            f"8 bits: a ResNet-8 takes {size} bytes, and every int8 file was within 0.5 points of float. No phase "
            "trains for 8 bits: that was not better than calibration.",
            (Measured(DEVICE, f"| student {name} |", size), Measured(DEVICE, "within 0.5 points", "0.5")),
        )  # fmt: skip
    if facts.images:
        return Choice(
            key, [name],
            "8 bits: a ResNet-8 takes 85,898 bytes in place of 314,201 in float, +0.00 points [-0.45, +0.45] from it. "
            "No phase trains for 8 bits: -0.25 points [-0.70, +0.21] from calibration alone.",
            (
                Measured(DEVICE, "| student onnx-int8 |", "85,898"),
                Measured(DEVICE, "| student onnx |", "314,201"),
                Measured(DEVICE, "| onnx-int8 |", "+0.00"),
                Measured(DEVICE, "| onnx-int8 |", "[-0.45, +0.45]"),
                Measured(DEVICE, "| onnx-int8 |", "-0.25"),
                Measured(DEVICE, "| onnx-int8 |", "[-0.70, +0.21]"),
            ),
        )  # fmt: skip
    if facts.tokens:
        return Choice(
            key, [name],
            "8 bits: half of a small Llama takes 136,080 bytes in place of 507,713 in float, at 1.3693 bits per byte "
            "in place of 1.3555.",
            (
                Measured(STORIES, "| onnx-int8-dynamic |", "136,080"),
                Measured(STORIES, "| onnx |", "507,713"),
                Measured(STORIES, "| onnx-int8-dynamic |", "1.3693"),
                Measured(STORIES, "| onnx |", "1.3555"),
            ),
        )  # fmt: skip
    return Choice(
        key, [name],
        "8 bits: half of MiniLM's blocks take 17,464,549 bytes in place of 69,586,764 in float, at 87.86% in place of "
        "87.92%.",
        (
            Measured(SST2, "| 3 | kl | onnx-int8-dynamic |", "17,464,549"),
            Measured(SST2, "| 3 | kl | onnx |", "69,586,764"),
            Measured(SST2, "| 3 | kl | onnx-int8-dynamic |", "87.86%"),
            Measured(SST2, "| 3 | kl | onnx |", "87.92%"),
        ),
    )  # fmt: skip
