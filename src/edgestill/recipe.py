"""The recipe: everything that a run is told, as plain typed values. No torch, so that a typo is refused at once."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from edgestill.errors import UserError, closest
from edgestill.functions import FUNCTION
from edgestill.reading import PERCENT, read
from edgestill.units import parse_bytes, parse_fraction, parse_seconds

SOFT_LOSSES = (
    "kl",
    "reverse_kl",
    "jensen_shannon",
    "skewed_kl",
    "skewed_reverse_kl",
    "dkd",
    "nkd",
    "dist",
    "binary_kl",
    "regression",
)
TERM_LOSSES = (
    "hint",
    "pyramid",
    "review",
    "attention_transfer",
    "attention_kl",
    "sp",
    "rkd",
    "pkt",
    "cc",
    "cka",
    "crd",
    "nst",
    "cwd",
)
FORMATS = (
    "onnx",
    "onnx-int8",
    "onnx-int8-dynamic",
    "executorch",
    "executorch-int8",
    "openvino",
    "openvino-float16",
    "openvino-int8",
    "litert",
    "litert-int8",
)
TRAINED = ("onnx-int8", "executorch-int8", "litert-int8")
"""Formats whose scales a quantize phase trains."""
RUNTIMES = {"onnxruntime": "onnx", "executorch": "executorch", "openvino": "openvino", "litert": "litert"}
"""What runs the files of a format."""
EMULATED = "qemu-aarch64"
MAPS = ("direct", "width", "depth", "first", "last", "auto", "every-N")


def _as_value_error(parse: Callable[[Any], Any], keep_text: bool) -> Callable[[Any], Any]:
    """Unit errors are UserErrors; pydantic adds the key's path only to ValueErrors."""

    def check(value: Any) -> Any:
        try:
            parsed = parse(value)
        except UserError as error:
            raise ValueError(str(error)) from None
        return value if keep_text else parsed

    return check


def _fraction(value: Any) -> Any:
    return _as_value_error(parse_fraction, keep_text=False)(value) if isinstance(value, str) else value


def _share_or_split(value: Any) -> Any:
    return _fraction(value) if isinstance(value, str) and PERCENT.search(value) else value


def _loss_name(names: Sequence[str]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in names and not FUNCTION.fullmatch(value):
            raise ValueError(
                f"must be one of {', '.join(names)} or file.py:function; {value!r} came{closest(value, names)}"
            )
        return value

    return check


def _map(value: str) -> str:
    if value not in MAPS[:-1] and not re.fullmatch(r"every-[1-9]\d{0,3}", value):
        raise ValueError(f"must be one of {', '.join(MAPS)}; {value!r} came{closest(value, MAPS)}")
    return value


def _format(value: str) -> str:
    if value not in FORMATS:
        raise ValueError(f"must be one of {', '.join(FORMATS)}; {value!r} came{closest(value, FORMATS)}")
    return value


def _written(**number: Any) -> WithJsonSchema:
    """Both ways of writing a share, for the schema: 0.85, and "85 %"."""
    text = {"type": "string", "pattern": PERCENT.pattern}
    return WithJsonSchema({"anyOf": [{"type": "number", "maximum": 1, **number}, text]})


Size = Annotated[str, BeforeValidator(_as_value_error(parse_bytes, keep_text=True))]
Duration = Annotated[str, BeforeValidator(_as_value_error(parse_seconds, keep_text=True))]
Fraction = Annotated[float, BeforeValidator(_fraction), Field(ge=0, le=1), _written(minimum=0)]
SomeShare = Annotated[float, BeforeValidator(_fraction), Field(gt=0, le=1), _written(exclusiveMinimum=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1e4, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=2**20)]
Side = Annotated[int, Field(ge=1, le=4096)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Epochs = Annotated[float, Field(gt=0, le=1e5)]
Taps = Annotated[
    list[str],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}, "minItems": 1}, {"type": "string"}]}),
]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Data(Section):
    source: str | None = Field(None, description="A folder, Hub id or file.py:function that has the splits.")
    train: str | None = Field(
        None, description="Training split: parquet files, an image folder, a Hub id, file.py:function."
    )
    test: str | None = Field(None, description="Test split; read once a seed, by the final model.")
    validation: Annotated[float | str, BeforeValidator(_share_or_split)] = Field(
        0.1, description="A split of its own, or the share held out of the training split."
    )
    size: Side | None = Field(None, description="Side in pixels to which images of different sizes are brought.")
    labels_per_class: Count | None = Field(
        None,
        description="Labels kept a class for the arms; the rest is unlabelled. A teacher fitted by the run sees all.",
    )
    licence: str | None = Field(None, description="The data's licence, for the student's model card.")
    workers: Threads | None = Field(None, description="Decoding workers; the order of the data does not depend on it.")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="When an image is broken or missing: stop, or leave it out and count it."
    )

    @model_validator(mode="after")
    def _one_way(self) -> "Data":
        if self.source is None and (self.train is None or self.test is None):
            raise ValueError("needs `source` (or just `data: DIR`), or both `train` and `test`")
        if self.source is not None and (self.train is not None or self.test is not None):
            raise ValueError("takes `source` or `train` and `test`, not both")
        if isinstance(self.validation, float) and not 0 < self.validation < 1:
            raise ValueError(f"validation: a share between 0 and 1 or a split; {self.validation} came")
        return self


class Input(Section):
    mean: list[float] | None = Field(
        None, description="Channel means of pixels in 0…1; the training split's by default."
    )
    std: list[Positive] | None = Field(
        None, description="Channel standard deviations; the training split's by default."
    )
    size: Side | None = Field(None, description="Side in pixels that the model sees; the data's by default.")


class Fit(Section):
    epochs: Epochs = Field(description="Epochs over the labelled training images.")
    batch_size: Count = Field(128, description="Images a step.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum 0.9.")
    lr: Rate = Field(0.1, description="Peak learning rate.")
    weight_decay: NonNegative = Field(5e-4, description="Decoupled for adamw, L2 for sgd.")


Trust = Annotated[bool, Field(description="Run the code that a Hugging Face model brings along: read it first.")]


def _only_hugging_face(section: "Teacher | Student") -> None:
    if section.trust_remote_code and not section.model.startswith("hf:"):
        raise ValueError(f"trust_remote_code is for hf: models alone; {section.model} came: leave it out")


class Teacher(Section):
    model: str = Field(description="file.py:function, timm:NAME, hf:FOLDER-OR-ID, or a saved student folder.")
    weights: str | None = Field(None, description="Safetensors, or a plain state dict. Given, nothing is fitted.")
    classes: list[NonNegativeInt] | None = Field(
        None,
        min_length=2,
        description="Which of the teacher's outputs stand for the data's classes, in their order; all by default.",
    )
    licence: str | None = Field(None, description="The teacher's licence, for the student's model card.")
    fit: Fit | None = Field(None, description="How to fit the teacher when no weights are given.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the model's function.")
    input: Input = Field(default_factory=Input, description="What the model expects of its input.")
    trust_remote_code: Trust = False

    @model_validator(mode="after")
    def _trust(self) -> "Teacher":
        _only_hugging_face(self)
        return self


class Student(Section):
    model: str = Field(description="file.py:function, timm:NAME, hf:FOLDER-OR-ID, or a saved student folder.")
    weights: str | None = Field(None, description="Weights that every arm starts from; random ones by default.")
    classifier: Literal["own", "teacher"] = Field(
        "own", description="teacher: the student's last maps, projected, in front of the teacher's frozen classifier."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the model's function.")
    input: Input = Field(default_factory=Input, description="What the model expects of its input.")
    trust_remote_code: Trust = False

    @model_validator(mode="after")
    def _trust(self) -> "Student":
        _only_hugging_face(self)
        return self


class Term(Section):
    loss: Annotated[str, AfterValidator(_loss_name(TERM_LOSSES))] = Field(description="A loss over taps.")
    student: Taps | None = Field(
        None, description="Student taps; by default its stages, or a plain transformer's blocks."
    )
    teacher: Taps | None = Field(
        None, description="Teacher taps; by default its stages, or a plain transformer's blocks."
    )
    map: Annotated[str, AfterValidator(_map)] = Field(
        "depth",
        description="direct: equal shapes, pair by pair. width: pair by pair, aligned. depth: evenly spread. first, "
        "last, every-2 and the like: of the teacher's taps. auto: the most similar ones, measured.",
    )
    weight: NonNegative | Literal["balanced"] = Field(
        1.0,
        description="Factor of each pair's loss. balanced: the gradient of all pairs as large as the soft part's, "
        "measured over the first steps, then held.",
    )
    aligner: Literal["auto", "conv", "linear", "interpolate", "none"] = Field(
        "auto", description="What brings the student's tap to the teacher's shape; auto: conv for maps, else linear."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the loss.")


class Distill(Section):
    loss: Annotated[str, AfterValidator(_loss_name((*SOFT_LOSSES, "none")))] = Field(
        "kl", description="D of the soft part; none leaves it out."
    )
    alpha: Fraction = Field(0.9, description="Weight of the teacher: (1 − alpha)·CE + alpha·D.")
    temperature: Rate = Field(4.0, description="T of the soft part, which includes the factor T².")
    standardize: bool = Field(False, description="Both sides' logits as z-scores before the loss.")
    options: dict[str, Any] = Field(default_factory=dict, description="Further keyword arguments of the loss.")
    terms: list[Term] = Field(default_factory=list, description="Losses over taps, added with their weights.")


class Phase(Section):
    name: str = Field(min_length=1, description="A name to address it by: phases.NAME.key.")
    share: SomeShare = Field(description="Share of all steps.")
    order: Literal["uniform", "easiest-first"] = Field(
        "uniform",
        description="easiest-first: by the teacher's own loss, ranked within class; the admitted part grows to all.",
    )
    alpha: Fraction | None = Field(None, description="distill.alpha unless given.")
    temperature: Rate | None = Field(None, description="distill.temperature unless given.")
    lr: Rate | None = Field(
        None,
        description="train.lr unless given; the schedule's shape is kept. Of a quantize phase 3e-4, of AdamW, and "
        "a curve of its own.",
    )
    terms: list[Term] | None = Field(None, description="distill.terms unless given.")
    fake_quantize: Literal["int8"] | None = Field(
        None, description="Of the last phase alone: the student computes as in 8 bits, and trains for it."
    )


def _default_phases() -> list[Phase]:
    return [
        Phase(name="warmup", share=0.2, order="easiest-first"),
        Phase(name="distill", share=0.6),
        Phase(name="finetune", share=0.2, alpha=0.0, terms=[]),
    ]


class Views(Section):
    crop: Annotated[int, Field(ge=0, le=512)] = Field(0, description="Pixels of padding for the random crop.")
    flip: bool = Field(False, description="Mirror half of the images.")
    policy: Literal["none", "strong"] = Field(
        "none", description="strong: colour, contrast, shift and erasing as well."
    )


class Train(Section):
    epochs: Epochs = Field(20.0, description="Length in passes over the training split; may be a fraction.")
    batch_size: Count = Field(128, description="Images a step.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum 0.9.")
    lr: Rate = Field(0.1, description="Peak learning rate.")
    lr_ramp: Fraction = Field(0.05, description="Share of all steps over which the learning rate rises.")
    lr_shape: Literal["cosine", "constant"] = Field("cosine", description="What follows the ramp.")
    weight_decay: NonNegative = Field(5e-4, description="Decoupled for adamw, L2 for sgd.")
    views: Views = Field(default_factory=Views, description="Augmentation of the training images.")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Of the hard part.")
    mixup: NonNegative = Field(0.0, description="Beta parameter of mixup; 0 mixes nothing.")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Decay of the averaged student; 0 averages nothing."
    )
    keep: Literal["last", "best"] = Field("last", description="Which weights an arm ends with; best is by validation.")
    device: str = Field("auto", description="auto, cpu, or a torch device such as cuda:0.")
    precision: Literal["float32", "bf16"] = Field("float32", description="bf16: autocast of the forward passes.")
    threads: Threads | None = Field(None, description="CPU threads of the training; all cores by default.")
    clip: Positive | None = Field(None, description="Largest norm of the gradient; not clipped by default.")
    accumulate: Count = Field(1, description="Pieces a step's batch is passed in; the gradient is the whole batch's.")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="When a loss is not finite: stop, or drop the step and count it."
    )
    tracker: Literal["tensorboard", "wandb"] | None = Field(None, description="Where metrics go besides metrics.jsonl.")


class Compare(Section):
    seeds: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="Repetitions of each arm: seeds 0, 1, …")
    baseline: bool = Field(True, description="Train the same student without the teacher as well.")


class Quantize(Section):
    samples: Count = Field(300, description="Training images that the ranges of activations are measured on.")
    keep_float: list[str] | Literal["auto"] = Field(
        default_factory=list,
        description="Layers that stay in float, by path; openvino-int8 and onnx-int8-dynamic know none. auto: the "
        "fewest of those that lose most, until the rest is within 0.5 points of the float student on validation.",
    )

    @model_validator(mode="after")
    def _enough(self) -> "Quantize":
        if self.samples < 2:
            raise ValueError(f"samples: ranges over many images are needed, 200 to 500 as a rule; {self.samples} came")
        return self


class Verify(Section):
    samples: Count = Field(1000, description="Real images on which each file is compared with the student.")
    max_abs_error: Positive = Field(1e-3, description="Largest difference of a logit that a float32 file may have.")
    agreement: Fraction = Field(0.9, description="Least share of images on which a file of less precision agrees.")


class Bench(Section):
    host: str | None = Field(
        None,
        description="Where files are measured: this host by default; user@pi over SSH; qemu-aarch64 also checks the "
        "answers of ONNX files on an emulated ARM processor.",
    )
    python: str = Field("python3", description="The Python of that host.")


class Budget(Section):
    size: Size | None = Field(None, description="Largest file, as in 120 KB.")
    latency: Duration | None = Field(None, description="Largest median time of one sample, as in 2 ms.")
    memory: Size | None = Field(None, description="Largest peak memory over an empty model, as in 8 MB.")
    quality: Fraction | None = Field(None, description="Smallest test quality: 0.87.")
    runtime: Literal["onnxruntime", "executorch", "openvino", "litert"] | None = Field(
        None, description="Whose files the limits are for; all by default."
    )
    threads: Threads = Field(1, description="Threads of the runtime.")


class Recipe(Section):
    """A run, whole: what to distil from what on which data, how, and what must come out."""

    task: Literal["image-classification"] = Field(description="What the model does.")
    data: Annotated[Data, BeforeValidator(lambda v: {"source": v} if isinstance(v, str) else v)] = Field(
        description="Splits; `data: DIR` is short for `data: {source: DIR}`.",
        json_schema_extra=lambda schema: schema.update(anyOf=[{"$ref": schema.pop("$ref")}, {"type": "string"}]),
    )
    teacher: Teacher = Field(description="The large trained model.")
    student: Student = Field(description="The small model being trained.")
    distill: Distill = Field(default_factory=Distill, description="What is learned from the teacher.")
    phases: list[Phase] = Field(
        default_factory=_default_phases,
        description="Stretches of the training, in order: by default warmup 0.2 (easiest-first), distill 0.6 and "
        "finetune 0.2 (alpha 0, no terms).",
    )
    train: Train = Field(default_factory=Train, description="How the student's arms are trained.")
    compare: Compare = Field(default_factory=Compare, description="What the student is compared with.")
    budget: Budget = Field(default_factory=Budget, description="Limits that the artifact must meet.")
    export: list[Annotated[str, AfterValidator(_format)]] = Field(
        default=["onnx", "onnx-int8"],
        min_length=1,
        description="Artifacts to make.",
        json_schema_extra={"items": {"type": "string", "enum": [*FORMATS]}},
    )
    quantize: Quantize = Field(default_factory=Quantize, description="How files of 8 bits are made.")
    verify: Verify = Field(default_factory=Verify, description="How far files may be from the student.")
    bench: Bench = Field(default_factory=Bench, description="Where files are measured.")

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

    @model_validator(mode="after")
    def _measurable(self) -> "Recipe":
        for phase in self.phases:
            for term in self.distill.terms if phase.terms is None else phase.terms:
                if term.weight == "balanced" and self.train.accumulate > 1:
                    raise ValueError("weight: balanced is measured on whole batches: it needs train.accumulate 1")
                if term.map == "auto" and not (self.compare.baseline or self.student.weights):
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


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A validated Recipe from a YAML file or a built-in recipe's name, with `key.path=value` overrides.

    Paths in the file are relative to the file, paths in overrides to the current folder; both come back absolute.
    Raises UserError in one line that names the key, what was required and what came.

    >>> load_recipe("digits", ["distill.temperature=2"]).distill.temperature
    2.0
    """
    phases = [phase.model_dump(exclude_none=True) for phase in _default_phases()]
    return validate(read(recipe, overrides, {"phases": phases}))


def validate(raw: dict[str, Any]) -> Recipe:
    """A Recipe from plain values; UserError with the first mistake."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError(_explain(error, raw)) from None
    except (RecursionError, OverflowError) as error:
        raise UserError(f"the recipe cannot be read: {error}") from None


def dump(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal Recipe."""
    return yaml.safe_dump(recipe.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)


def _explain(error: ValidationError, raw: dict[str, Any]) -> str:
    """The first mistake in one line: where, what was required, what came."""
    mistakes = error.errors()
    first = next((m for m in mistakes if m["type"] == "extra_forbidden"), mistakes[0])
    keys, fields = _locate(first["loc"], raw)
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
    line = f"recipe: {message}{f' (and {more} more)' if more else ''}"
    return " ".join(line.split())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _locate(loc: tuple[int | str, ...], raw: Any) -> tuple[list[str], list[str]]:
    """Readable keys of an error's place (phases by name), and the field names known in its parent."""
    keys: list[str] = []
    model: Any = Recipe
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
