"""The models that a recipe names."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from edgestill.errors import UserError, first_line
from edgestill.models import (
    Head,
    ImageInput,
    Model,
    TextInput,
    example,
    forward,
    load_model,
    load_text_model,
    lower,
    select_classes,
)
from edgestill.recipe import Recipe
from edgestill.recipe import Student as StudentSection
from edgestill.recipe import Teacher as TeacherSection
from edgestill.students.lora import Lora, adapted, peft, targets_of
from edgestill.students.vocabulary import Vocabulary, select_vocabulary

_log = logging.getLogger("edgestill")
PADDING_ERROR = 1e-2
"""Largest distance between two vectors of length 1 that are of one text."""


def selected(section: TeacherSection, teacher: Model, classes: Sequence[str]) -> Model:
    """The teacher with those of its outputs that stand for the data's classes."""
    if section.classes is None:
        return teacher
    outputs = _outputs("teacher", teacher)
    if len(section.classes) != len(classes) or max(section.classes) >= outputs:
        raise UserError(
            f"teacher.classes: needs one of the teacher's outputs 0…{outputs - 1} for each of the data's "
            f"{len(classes)} classes; {len(section.classes)} came, the largest {max(section.classes)}"
        )
    select_classes(teacher.module, section.classes)
    return teacher


def image_model(section: TeacherSection | StudentSection, classes: int | None, default: ImageInput) -> Model:
    assert section.model is not None
    return load_model(
        section.model,
        classes=classes,
        default=default,
        options=section.options,
        weights=section.weights,
        mean=section.input.mean,
        std=section.input.std,
        size=section.input.size,
        trust_remote_code=section.trust_remote_code,
        config=getattr(section, "config", None),
    )


def _outputs(role: str, model: Model) -> int:
    """How many classes a model puts out; UserError where it does not take the images or puts out something else."""
    try:
        with torch.no_grad():
            longest = getattr(model.input, "length", 0)  # positions may be fewer than a model says
            shape = forward(model.module.eval(), example(model.input, 2, longest)).shape
    except UserError:
        raise
    except Exception as error:
        size = model.input
        sized = (
            f"texts of {size.length} tokens"
            if isinstance(size, TextInput)
            else f"images of {size.channels}×{size.size}×{size.size}"
        )
        raise UserError(f"the {role} {model.spec} does not take {sized}: {first_line(error)}") from error
    if len(shape) != 2:
        raise UserError(f"the {role} {model.spec} puts out {[*shape[1:]]}, not one number a class")
    return shape[1]


def check_embeds(role: str, model: Model) -> None:
    """UserError for a model that does not put out one vector a text, or another where the text is padded."""
    expected = model.input
    assert isinstance(expected, TextInput)
    _outputs(role, model)
    if model.parameters == 0:
        raise UserError(f"the {role} {model.spec} has no parameters: there is nothing to learn or to keep")
    ids, mask = example(expected, 2), torch.ones_like(example(expected, 2))
    short = max(1, ids.shape[1] // 2)
    ids[0, short:], mask[0, short:] = expected.padding, 0
    given = {name: value for name, value in (("input_ids", ids), ("attention_mask", mask)) if name in expected.names}
    with torch.no_grad():
        padded = forward(model.module, given)[0]
        alone = forward(model.module, {name: value[:1, :short] for name, value in given.items()})[0]
    if float((padded - alone).norm()) > PADDING_ERROR:
        raise UserError(
            f"the {role} {model.spec} embeds a text otherwise where it is padded: its forward needs to take "
            "`attention_mask`, and to leave out what that says is padding"
        )


def check_outputs(role: str, model: Model, classes: Sequence[str]) -> None:
    """UserError for a model that does not put out one number for each of `classes`, or has nothing to learn."""
    outputs = _outputs(role, model)
    if model.parameters == 0:
        raise UserError(f"the {role} {model.spec} has no parameters: there is nothing to learn or to keep")
    if outputs != len(classes):
        remedy = ": name those that stand for them in teacher.classes" if role == "teacher" else ""
        raise UserError(
            f"class counts differ: the {role} {model.spec} puts out {outputs}, "
            f"the data has {len(classes)} classes{remedy}"
        )


def text_model(
    recipe: Recipe,
    section: TeacherSection | StudentSection,
    classes: Sequence[str],
    pairs: bool,
    teacher: TextInput | None = None,
) -> Model:
    """A text model; a student has its `teacher`'s tokenizer unless it brings one, and of the same tokenizer as many
    tokens of a text. A teacher that is to be fitted is in float32 until then."""
    assert section.model is not None
    lowered = isinstance(section, TeacherSection) and trained(section)
    model = load_text_model(
        section.model,
        head=head(recipe),
        classes=classes,
        pairs=pairs,
        length=recipe.data.length,
        options=section.options,
        weights=section.weights,
        tokenizer=None if teacher is None else teacher.tokenizer,
        trust_remote_code=section.trust_remote_code,
        precision=recipe.teacher.precision if lowered else "float32",
        config=getattr(section, "config", None),
    )
    assert isinstance(model.input, TextInput)
    if teacher is not None and teacher.fingerprint == model.input.fingerprint and teacher.length < model.input.length:
        model.input = replace(model.input, length=teacher.length)
    return model


def trained(section: TeacherSection | StudentSection) -> bool:
    """Whether a model comes with weights, or is to be fitted first."""
    if isinstance(section, StudentSection):
        return section.weights is not None or section.from_teacher is not None
    return section.weights is not None or section.fit is None


def check_precision(recipe: Recipe, teacher: Model) -> None:
    """UserError for a teacher that does not answer in the recipe's precision, also where it is to be fitted first."""
    precision, module = recipe.teacher.precision, teacher.module
    if precision == "float32":
        return
    if not trained(recipe.teacher):
        module = copy.deepcopy(module)
        lower(module, precision, teacher.spec)
    try:
        with torch.no_grad():
            forward(module.eval(), example(teacher.input, 2))
    except Exception as error:
        raise UserError(
            f"teacher.precision: {teacher.spec} does not answer in {precision}: {first_line(error)}"
        ) from error


def alike(teacher: TextInput, student: TextInput) -> bool:
    """Whether two models see a text as the same tokens."""
    return (teacher.fingerprint, teacher.length) == (student.fingerprint, student.length)


def head(recipe: Recipe) -> Head:
    """What the models of a text task put out."""
    if recipe.task in ("language-modeling", "instruction"):
        return "tokens"
    if recipe.task == "sentence-embedding":
        return "embedding"
    return "number" if recipe.data.label == "number" else "classes"


def with_vocabulary(model: Model, vocabulary: Vocabulary) -> Model:
    """A model, its module changed in place, that has some of its tokens alone."""
    assert isinstance(model.input, TextInput)
    count, of = len(vocabulary.kept), len(model.input.tokenizer)
    select_vocabulary(model.module, vocabulary.kept)
    return replace(
        model, spec=f"{model.spec}, {count:,} of {of:,} tokens", input=model.input.with_tokenizer(vocabulary.tokenizer)
    )


def lora_of(section: StudentSection, student: Model) -> Lora | None:
    """How the student is trained by adapters, where it is. They are tried, which leaves the student as it is."""
    asked = section.lora
    if asked is None:
        return None
    peft()
    probe = example(student.input, 2)
    lora = Lora(asked.rank, asked.alpha, asked.dropout, targets_of(student.module, probe, asked.targets))
    with torch.no_grad(), adapted(student.module, lora, student.fresh):
        forward(student.module, probe)
    return lora


def shared_vocabulary(teacher: Model, student: Model) -> int:
    """How many ids both models put out logits for. UserError unless their tokenizers are one and the same, but for ids
    that stand for nothing, with which a vocabulary is padded."""
    sizes = [forward(model.module.eval(), example(model.input, 2)).shape[-1] for model in (teacher, student)]
    for role, model in (("teacher", teacher), ("student", student)):
        _refuse_looking_ahead(role, model)
    inputs = [model.input for model in (teacher, student)]
    assert isinstance(inputs[0], TextInput)
    assert isinstance(inputs[1], TextInput)
    own = [expected.tokenizer.get_vocab() for expected in inputs if isinstance(expected, TextInput)]
    if own[0] != own[1] or max(own[0].values()) >= min(sizes):
        kinds = [type(expected.tokenizer).__name__ for expected in inputs if isinstance(expected, TextInput)]
        raise UserError(
            f"vocabularies differ: the teacher {teacher.spec} has {len(own[0]):,} tokens ({kinds[0]}) and {sizes[0]:,} "
            f"logits, the student {student.spec} {len(own[1]):,} ({kinds[1]}) and {sizes[1]:,}"
            f"{_first_difference(own[0], own[1])}; token by token, a student learns from a teacher of its own "
            "tokenizer alone: take a student of the teacher's family, or student.from_teacher"
        )
    if sizes[0] != sizes[1]:
        _log.warning(
            "edgestill: the teacher puts out %d logits, the student %d, for one tokenizer: the %d that both have count",
            *sizes, min(sizes),
        )  # fmt: skip
    return min(sizes)


def _first_difference(teacher: dict[str, int], student: dict[str, int]) -> str:
    """The first id that stands for another token, in words."""
    names = [{number: token for token, number in own.items()} for own in (teacher, student)]
    apart = [number for number in names[0].keys() | names[1].keys() if names[0].get(number) != names[1].get(number)]
    if not apart:
        return ""
    first = min(apart)
    told = [repr(own[first]) if first in own else "no token" for own in names]
    return f"; the first id that differs is {first}, the teacher's {told[0]} and the student's {told[1]}"


def same_order(recipe: Recipe, role: str, model: Model, classes: Sequence[str]) -> None:
    """UserError for a classifier whose classes have the data's names in another order."""
    if role != "teacher" or recipe.teacher.classes is not None:
        return
    labels = getattr(getattr(model.module, "config", None), "id2label", None) or {}
    named = {int(number): str(name) for number, name in labels.items()}
    own = [named.get(number, "") for number in range(len(named))]
    if set(own) == set(classes) and own != list(classes):
        order = [own.index(name) for name in classes]
        raise UserError(
            f"the teacher {model.spec} has the classes {', '.join(own)}, the data {', '.join(classes)}: the same in "
            f"another order; set teacher.classes={order}"
        )


def takes_length(role: str, model: Model) -> None:
    """UserError for a model that does not take a text of as many tokens as it says."""
    longest = example(model.input, 1, getattr(model.input, "length", 0))
    try:
        with torch.no_grad():
            forward(model.module.eval(), longest)
    except Exception as error:
        raise UserError(
            f"the {role} {model.spec} does not take texts of {longest.shape[1]} tokens: {first_line(error)}; set "
            "data.length"
        ) from error


def _refuse_looking_ahead(role: str, model: Model) -> None:
    """UserError for a model whose answer to a token depends on the next: it would be told what it is to predict."""
    ids = example(model.input, 1)
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    with torch.no_grad():
        first, second = (forward(model.module.eval(), rows)[0, :-1] for rows in (ids, other))
    if not torch.allclose(first, second, atol=1e-4):
        raise UserError(
            f"the {role} {model.spec} looks at the tokens behind the one that it answers: it is an encoder, and no "
            "language model"
        )
