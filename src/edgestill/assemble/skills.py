"""The skills that a recipe names, with their rows read and checked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgestill.data.images import spaced
from edgestill.data.texts import load_rows
from edgestill.errors import UserError
from edgestill.evaluate.skill import Skill
from edgestill.evaluate.skills import check, cut
from edgestill.functions import load_function
from edgestill.models import Model, TextInput
from edgestill.recipe import Recipe
from edgestill.recipe import Skill as SkillSection


def skills_of(recipe: Recipe, teacher: Model, student: Model) -> tuple[Skill, ...]:
    """In the recipe's order. UserError for data, templates, lengths and chat templates that do not fit."""
    return tuple(_skill(recipe, name, section, (teacher, student)) for name, section in recipe.skills.items())


def _skill(recipe: Recipe, name: str, section: SkillSection, models: tuple[Model, Model]) -> Skill:
    chat = section.writes and (recipe.task == "instruction" if section.chat is None else section.chat)
    for model in models:
        _check_room(name, section, model, chat)
    rows: list[dict[str, Any]] = []
    shots: list[dict[str, Any]] = []
    if section.scorer != "lm-eval":
        rows = _rows(name, "data", section.data)
        if section.samples is not None:
            rows = [rows[place] for place in spaced(len(rows), section.samples)]
        if section.examples is not None:
            shots = _rows(name, "examples", section.examples)[: section.shots]
            if len(shots) < section.shots:
                raise UserError(f"skills.{name}.shots: {section.examples} has {len(shots)} rows; {section.shots} came")
    elif not Path(section.data).is_file():
        raise UserError(f"skills.{name}.data: no file {section.data}; lm-eval's tasks take a local file")
    skill = Skill(
        name=name,
        scorer=load_function(section.scorer) if ".py:" in section.scorer else section.scorer,
        rows=rows,
        source=section.data,
        prompt=section.prompt,
        answer=section.answer,
        choices=section.choices,
        between=section.between,
        shots=shots,
        chat=chat,
        tokens=section.tokens,
        length=section.length,
        stop=tuple(section.stop if section.stop is not None else () if chat else ("\n\n",)),
        task=section.task,
        examples=section.examples,
        measure=section.measure,
        samples=section.samples,
        number_of_shots=section.shots,
    )
    check(skill)
    expected = models[1].input
    assert isinstance(expected, TextInput)
    longer = cut(skill, expected)
    if longer and recipe.data.too_long == "refuse":
        raise UserError(
            f"skills.{name}: {longer} prompts have no room in {skill.length or expected.length} tokens; raise "
            f"skills.{name}.length, or set data.too_long to cut"
        )
    return replace(skill, cut=longer)


def _rows(name: str, key: str, spec: str) -> list[dict[str, Any]]:
    try:
        return load_rows(spec)
    except UserError as error:
        raise UserError(f"skills.{name}.{key}: {error}") from None


def _check_room(name: str, section: SkillSection, model: Model, chat: bool) -> None:
    expected = model.input
    assert isinstance(expected, TextInput)
    config: Any = getattr(model.module, "config", None)
    most = getattr(config, "max_position_embeddings", None)
    if section.length is not None and most is not None and section.length > most:
        raise UserError(f"skills.{name}.length: {model.spec} takes at most {most} tokens; {section.length} came")
    length = section.length or expected.length
    if section.writes and section.tokens >= length:
        raise UserError(
            f"skills.{name}.tokens: a reply of {section.tokens} leaves a prompt no room in the {length} tokens of "
            f"{model.spec}; lower it, or raise skills.{name}.length"
        )
    if chat and not getattr(expected.tokenizer, "chat_template", None):
        raise UserError(
            f"skills.{name}.chat: the tokenizer of {model.spec} has no chat template; save one beside the model, as "
            "chat_template.jinja, or set chat: false"
        )
