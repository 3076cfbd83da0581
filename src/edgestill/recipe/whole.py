"""The recipe as a whole: what its sections must be to each other, and its first mistake in one line."""

from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from edgestill.errors import UserError, closest
from edgestill.recipe.sections import (
    Bench,
    Budget,
    Capture,
    Compare,
    Compute,
    Data,
    Distill,
    Phase,
    Quantize,
    Skill,
    Student,
    Teacher,
    Train,
    Verify,
    Views,
    default_phases,
)
from edgestill.recipe.steps import Step, listed, refuse_rising
from edgestill.recipe.values import (
    EMULATED,
    FORMATS,
    IMAGES,
    RUNTIMES,
    TEXT_FORMATS,
    TEXTS,
    TRAINED,
    Section,
    format_name,
)
from edgestill.units import parse_bytes, parse_seconds

Whole = TypeVar("Whole", bound=Section)
LIMITS = ("size", "latency", "memory")
"""Of a budget, those that a file meets or misses without training."""


def _either(schema: dict[str, Any]) -> None:
    """`student` or `students`."""
    schema["required"].remove("student")
    schema["oneOf"] = [{"required": ["student"]}, {"required": ["students"]}]


class Recipe(Section):
    """A run, whole: what to distil from what on which data, how, and what must come out."""

    model_config = ConfigDict(json_schema_extra=_either)

    task: Literal[
        "image-classification", "text-classification", "sentence-embedding", "language-modeling", "instruction"
    ] = Field(description="What the model does.")
    data: Annotated[Data, BeforeValidator(lambda v: {"source": v} if isinstance(v, str) else v)] = Field(
        description="Splits; `data: DIR` is short for `data: {source: DIR}`.",
        json_schema_extra=lambda schema: schema.update(anyOf=[{"$ref": schema.pop("$ref")}, {"type": "string"}]),
    )
    teacher: Teacher = Field(description="The large trained model.")
    student: Student = Field(
        description="The small model being trained; of a list of them, each is a run of its own.",
        json_schema_extra=lambda schema: schema.update(
            anyOf=[{"$ref": schema["$ref"]}, {"type": "array", "items": {"$ref": schema.pop("$ref")}, "minItems": 2}]
        ),
    )
    students: list[Step] | None = Field(
        None,
        description="In place of `student`: the steps from teacher to student, each made of the one before, with sizes "
        "as shares of the first teacher's; 0.5 is short for {width: 0.5}.",
        json_schema_extra=listed,
    )
    distill: Distill = Field(default_factory=Distill, description="What is learned from the teacher.")
    phases: list[Phase] = Field(
        default_factory=default_phases,
        description="Stretches of the training, in order: by default warmup 0.2 (easiest-first), distill 0.6 and "
        "finetune 0.2 (alpha 0, no terms); for sentence-embedding distill alone.",
    )
    train: Train = Field(default_factory=Train, description="How the student's arms are trained.")
    capture: Capture = Field(default_factory=Capture, description="What a capture keeps of the teacher.")
    skills: dict[Annotated[str, Field(pattern=r"^\w[\w -]*$")], Skill] = Field(
        default_factory=dict,
        description="What a language model must be able to do, by name: each a data set and a scorer.",
    )
    compute: Compute = Field(default_factory=Compute, description="What a search of students may take.")
    compare: Compare = Field(default_factory=Compare, description="What the student is compared with.")
    budget: Budget = Field(default_factory=Budget, description="Limits that the artifact must meet.")
    export: list[Annotated[str, AfterValidator(format_name)]] = Field(
        default=["onnx", "onnx-int8"],
        min_length=1,
        description="Artifacts to make.",
        json_schema_extra={"items": {"type": "string", "enum": [*FORMATS]}},
    )
    quantize: Quantize = Field(default_factory=Quantize, description="How files of 8 bits are made.")
    verify: Verify = Field(default_factory=Verify, description="How far files may be from the student.")
    bench: Bench = Field(default_factory=Bench, description="Where files are measured.")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_texts(cls, given: Any) -> Any:
        """What is usual for texts where the recipe does not say."""
        if not isinstance(given, dict) or given.get("task") not in TEXTS:
            return given
        usual: dict[str, Any] = {"batch_size": 32, "optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.01}
        numbers = isinstance(given.get("data"), dict) and given["data"].get("label") == "number"
        distill: dict[str, Any] = {"loss": "regression"} if numbers else {}
        capture: dict[str, Any] = {}
        if given["task"] in ("language-modeling", "instruction"):  # whose logits are large
            distill, capture = {"temperature": 1.0}, {"batch": 8}
        made = given | {"export": given.get("export", [*TEXT_FORMATS])}
        if given["task"] == "sentence-embedding":
            distill = {"temperature": 0.05}
            made["phases"] = given.get("phases", default_phases(given["task"]))
        for key, defaults in (("train", usual | {"clip": 1.0}), ("distill", distill), ("capture", capture)):
            if isinstance(given.get(key, {}), dict):
                made[key] = defaults | given.get(key, {})
        teacher = given.get("teacher")
        if isinstance(teacher, dict) and isinstance(teacher.get("fit"), dict):
            made["teacher"] = teacher | {"fit": usual | teacher["fit"]}
        return made

    @model_validator(mode="after")
    def _in_steps(self) -> "Recipe":
        if self.students is None:
            return self
        refuse_rising(self.students)
        if self.teacher.store is not None:
            raise ValueError("teacher.store: is of one teacher, and each of the students has another: leave it out")
        if self.budget.keep:
            raise ValueError(
                "budget.keep: is a share of the teacher's, and the last of the students has another: set budget.quality"
            )
        return self

    @model_validator(mode="after")
    def _of_the_task(self) -> "Recipe":
        data, train, quality = self.data, self.train, self.budget.quality
        if quality is not None and quality > 1 and self.task not in ("language-modeling", "instruction"):
            raise ValueError(f"budget.quality: Input should be less than or equal to 1; {quality:g} came")
        if self.teacher.classes is not None and self.student.from_teacher is not None:
            raise ValueError("teacher.classes: a student of the teacher's parts would have its other classes too")
        self._built()
        if self.task in IMAGES:
            for name, value in (("columns", data.columns), ("length", data.length)):
                if value:
                    raise ValueError(f"data.{name}: is for texts; the task is {self.task}")
            if self.student.lora is not None:
                raise ValueError(f"student.lora: is for text models; the task is {self.task}")
            if self.teacher.precision != "float32":
                raise ValueError(
                    f"teacher.precision: {self.teacher.precision} is for text models; the task is {self.task}"
                )
            return self
        if data.size is not None or data.on_error != "stop":
            raise ValueError(f"data.{'size' if data.size else 'on_error'}: is for images; the task is {self.task}")
        if train.views != Views() or train.mixup:
            raise ValueError(f"train.{'mixup' if train.mixup else 'views'}: is for images; the task is {self.task}")
        if self.student.classifier == "teacher":
            raise ValueError(f"student.classifier: teacher is for images; the task is {self.task}")
        for name in self.export:
            if name not in TEXT_FORMATS:
                raise ValueError(f"export: text models are exported to {', '.join(TEXT_FORMATS)}; {name} came")
        if any(phase.fake_quantize for phase in self.phases):
            raise ValueError("phases: fake_quantize is for images; onnx-int8-dynamic needs no training")
        numbers = data.label == "number"
        if numbers and self.task not in ("text-classification", "sentence-embedding"):
            raise ValueError("data.label: number is for text-classification and sentence-embedding")
        if self.task == "sentence-embedding":
            return self._of_embeddings()
        if numbers and self.distill.loss not in ("regression", "none"):
            loss = self.distill.loss
            raise ValueError(f"distill.loss: labels are numbers, for which it is regression or none; {loss} came")
        if numbers and train.label_smoothing:
            raise ValueError("train.label_smoothing: labels are numbers, which are not smoothed")
        if self.task != "text-classification" and data.labels_per_class is not None:
            raise ValueError(f"data.labels_per_class: {self.task} has no labels")
        return self

    def _of_embeddings(self) -> "Recipe":
        train, data = self.train, self.data
        if train.accumulate > 1:
            raise ValueError(
                "train.accumulate: sentence-embedding compares the texts of a whole batch, which pieces of it are not: "
                f"it needs 1; {train.accumulate} came"
            )
        if train.batch_size < 3:
            raise ValueError(
                "train.batch_size: sentence-embedding compares the texts of a batch: at least 3; "
                f"{train.batch_size} came"
            )
        for name, given in (
            ("train.label_smoothing", train.label_smoothing),
            ("data.labels_per_class", data.labels_per_class),
            ("teacher.classes", self.teacher.classes),
        ):
            if given:
                raise ValueError(f"{name}: is for classes, which sentence-embedding has none of")
        terms = [*self.distill.terms, *(term for phase in self.phases for term in phase.terms or ())]
        if any(term.loss == "crd" for term in terms):
            raise ValueError("crd: it remembers samples of one text; a sample of sentence-embedding may be two")
        return self

    @model_validator(mode="after")
    def _skilled(self) -> "Recipe":
        if self.skills and self.task not in ("language-modeling", "instruction"):
            raise ValueError(f"skills: are those of language models; the task is {self.task}")
        for name in self.budget.keep:
            if name not in self.skills:
                raise ValueError(f"budget.keep: there is no skill {name!r}{closest(name, [*self.skills])}")
            if self.skills[name].scorer == "perplexity":
                raise ValueError(f"budget.keep: no share of a perplexity is retained; score {name} by bits-per-byte")
        return self

    @model_validator(mode="after")
    def _teacher_of_more(self) -> "Recipe":
        if self.teacher.classes is not None and self.teacher.fit is not None and self.teacher.weights is None:
            raise ValueError("teacher.classes: is for a teacher that has weights; one that is fitted has the data's")
        if self.teacher.classes is not None and self.student.classifier == "teacher":
            raise ValueError("teacher.classes: student.classifier: teacher takes the teacher's classifier whole")
        classes = self.teacher.classes or []
        if repeated := [number for number in classes if classes.count(number) > 1]:
            raise ValueError(f"teacher.classes: each output stands for one class; {repeated[0]} stands there twice")
        return self

    @model_validator(mode="after")
    def _learnable(self) -> "Recipe":
        if self.distill.loss != "none":
            return self
        if self.distill.options:
            raise ValueError(f"distill.options: loss: none takes none; {', '.join(self.distill.options)} came")
        for phase in self.phases:
            terms = self.distill.terms if phase.terms is None else phase.terms
            alpha = self.distill.alpha if phase.alpha is None else phase.alpha
            if alpha == 1 and not any(term.weight for term in terms):
                raise ValueError(
                    f"phases.{phase.name}: nothing is learned with loss: none, alpha 1 and no term of weight above 0"
                )
            if alpha == 1 and any(term.weight == "balanced" for term in terms):
                raise ValueError(
                    "weight: balanced is measured against the part over logits; with loss: none and alpha 1 there is "
                    f"none in phases.{phase.name}: give a number"
                )
        return self

    def _built(self) -> None:
        """What a student of the teacher's parts needs."""
        section = self.student.from_teacher
        terms = [term for phase in self.phases for term in phase.terms or ()]
        if section is None:
            if self.student.search is None and any(term.map == "origin" for term in (*self.distill.terms, *terms)):
                raise ValueError("map: origin is of a student that is built from its teacher: set student.from_teacher")
            return
        if self.task in IMAGES and section.vocabulary != "all":
            raise ValueError(f"student.from_teacher.vocabulary: is for text models; the task is {self.task}")
        if section.keep == "important" and self.teacher.fit is not None and self.teacher.weights is None:
            raise ValueError(
                "student.from_teacher.keep: important asks a teacher that is trained: fit it first (edgestill train), "
                "and name its folder as teacher.model"
            )
        if self.task == "sentence-embedding" and section.importance == "taylor":
            raise ValueError("student.from_teacher.importance: taylor needs labels, of which texts to embed have none")

    @model_validator(mode="after")
    def _searchable(self) -> "Recipe":
        budget = self.budget
        if self.student.search is None:
            if self.compute.time is not None:
                raise ValueError("compute.time: is of a search; the recipe has no student.search")
            return self
        limits = {name: value for name in LIMITS if (value := getattr(budget, name)) is not None}
        if not limits:
            raise ValueError(
                "student.search: chooses within a budget: set budget.size, budget.latency or budget.memory"
            )
        for name, text in limits.items():
            if not (parse_seconds if name == "latency" else parse_bytes)(text):
                raise ValueError(f"budget.{name}: {text} leaves room for nothing")
        if budget.size and budget.memory and parse_bytes(budget.memory) < parse_bytes(budget.size):
            raise ValueError(
                f"budget: memory, {budget.memory}, contradicts size, {budget.size}: a file that runs is in memory "
                "whole; raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _measurable(self) -> "Recipe":
        for phase in self.phases:
            for term in self.distill.terms if phase.terms is None else phase.terms:
                if term.weight == "balanced" and self.train.accumulate > 1:
                    raise ValueError("weight: balanced is measured on whole batches: it needs train.accumulate 1")
                if term.map == "auto" and not (
                    self.compare.baseline or self.student.weights or self.student.from_teacher
                ):
                    raise ValueError(
                        "map: auto is measured on a student that has learned: "
                        "it needs compare.baseline or student.weights"
                    )
        return self

    @model_validator(mode="after")
    def _deliverable(self) -> "Recipe":
        runtime = self.budget.runtime
        if runtime is not None and not any(name.partition("-")[0] == RUNTIMES[runtime] for name in self.export):
            raise ValueError(
                f"budget.runtime: {runtime} runs {RUNTIMES[runtime]} files; export names {', '.join(self.export)} alone"
            )
        if self.bench.host == EMULATED and not any(name.startswith("onnx") for name in self.export):
            raise ValueError(f"bench.host: {EMULATED} checks ONNX files only, and export names none")
        if self.quantize.keep_float and not any(name in TRAINED for name in self.export):
            raise ValueError(f"quantize.keep_float: spares layers in {', '.join(TRAINED)}; export names none of them")
        for place, phase in enumerate(self.phases):
            if phase.fake_quantize is None:
                continue
            if place != len(self.phases) - 1:
                raise ValueError(f"phases.{phase.name}: fake_quantize is for the last phase: a float one follows")
            if not {*TRAINED} & {*self.export}:
                raise ValueError(
                    f"phases.{phase.name}: fake_quantize trains for {', '.join(TRAINED)}: export one of them"
                )
            if len(self.phases) == 1 and self.student.weights is None:
                raise ValueError(f"phases.{phase.name}: with no other phase the student needs weights to begin with")
            if phase.order != "uniform":
                raise ValueError(f"phases.{phase.name}: a phase with fake_quantize draws in uniform order")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if not self.phases:
            raise ValueError("phases: at least one is needed")
        total = sum(phase.share for phase in self.phases)
        if abs(total - 1) > 1e-6:
            shares = " + ".join(f"{phase.share:g}" for phase in self.phases)
            raise ValueError(f"phases: the shares must sum to 1; {shares} = {total:g}")
        for what, names in (
            ("phases", [phase.name for phase in self.phases]),
            ("export", [str(name) for name in self.export]),
        ):
            if repeated := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{what}: {sorted(repeated)[0]!r} stands there twice")
        return self


def validate(raw: dict[str, Any]) -> Recipe:
    """A Recipe from plain values; UserError with the first mistake."""
    return validated(Recipe, raw, "recipe")


def validated(kind: type[Whole], raw: dict[str, Any], what: str) -> Whole:
    """A file's plain values as a section of that kind; UserError with the first mistake."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UserError(_explain(error, kind, raw, what)) from None
    except (RecursionError, OverflowError) as error:
        raise UserError(f"the {what} cannot be read: {error}") from None


def dump(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal Recipe."""
    return yaml.safe_dump(recipe.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)


def _explain(error: ValidationError, kind: type[Section], raw: dict[str, Any], what: str) -> str:
    """The first mistake in one line: where, what was required, what came."""
    mistakes = error.errors()
    first = next((m for m in mistakes if m["type"] == "extra_forbidden"), mistakes[0])
    keys, fields = _locate(first["loc"], kind, raw)
    where = ".".join(keys)
    if first["type"] == "extra_forbidden":
        parent = ".".join(keys[:-1])
        message = f"unknown key {keys[-1]!r}{f' in {parent}' if parent else ''}{closest(keys[-1], fields)}"
    elif first["type"] == "missing":
        message = f"{where} is required"
    else:
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "model_type":  # pydantic names its classes
            said = "needs keys of its own"
        came = (
            ""
            if first["type"] == "value_error" or isinstance(first["input"], dict)
            else f"; {_short(first['input'])} came"
        )
        message = f"{where}: {said}{came}" if where else f"{said}{came}"
    more = len({m["loc"] for m in mistakes}) - 1
    line = f"{what}: {message}{f' (and {more} more)' if more else ''}"
    return " ".join(line.split())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _locate(loc: tuple[int | str, ...], kind: type[Section], raw: Any) -> tuple[list[str], list[str]]:
    """Readable keys of an error's place (phases by name), and the field names known in its parent."""
    keys: list[str] = []
    model: Any = kind
    fields: list[str] = []
    for part in loc:
        if isinstance(part, int):
            item = raw[part] if isinstance(raw, list) and part < len(raw) else None
            name = item.get("name") if isinstance(item, dict) else None
            keys.append(name if isinstance(name, str) else str(part))
            raw = item
            continue
        fields = list(model.model_fields) if model else []
        in_data = isinstance(raw, dict) and part in raw
        if fields and part not in fields and not in_data:
            continue  # a union's tag, not a key
        if not fields and not in_data and raw is not None and not isinstance(raw, dict):
            continue
        keys.append(str(part))
        model = _section_of(model.model_fields[part].annotation) if part in fields else None
        raw = raw.get(part) if isinstance(raw, dict) else None
    return keys, fields


def _section_of(annotation: Any) -> type[Section] | None:
    """The Section inside an annotation such as `list[Term] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if found := _section_of(inner):
            return found
    return None
