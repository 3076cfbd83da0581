"""A job on paper: the sizes of a distillation that is too large to be tried, as plain typed values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from edgestill.reading import read
from edgestill.recipe.values import Positive, Rate, Section, Size, SomeShare, as_value_error
from edgestill.recipe.whole import validated
from edgestill.units import parse_count

SIZES = ("layers", "width", "heads", "feed_forward", "vocabulary")
"""What of a model has to be written where no config is named."""
PAPER = ("recipes/paper", "job", "teacher, student and tokens")


Amount = Annotated[
    int,
    BeforeValidator(as_value_error(parse_count, keep_text=False)),
    Field(ge=1, le=10**18),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]}),
]
"""4096, "512K", "10B"."""


class PaperModel(Section):
    """A transformer: a Hugging Face config.json, or sizes of a Llama-like one."""

    config: str | None = None
    layers: Amount | None = None
    width: Amount | None = None
    heads: Amount | None = None
    key_value_heads: Amount | None = None
    head_width: Amount | None = None
    feed_forward: Amount | None = None
    vocabulary: Amount | None = None
    gated: bool = True
    tied: bool = False

    @model_validator(mode="after")
    def _whole(self) -> "PaperModel":
        given = [name for name in type(self).model_fields if name in self.model_fields_set]
        sizes = [name for name in given if name not in ("config", "precision")]
        if self.config is not None and sizes:
            raise ValueError(f"config says all sizes; {sizes[0]} came beside it")
        if self.config is None and (absent := [name for name in SIZES if getattr(self, name) is None]):
            raise ValueError(f"{', '.join(absent)} must be written, or config: FILE")
        if self.heads and self.heads % (self.key_value_heads or self.heads):
            raise ValueError(f"heads must be a multiple of key_value_heads; {self.heads}, {self.key_value_heads} came")
        if self.heads and self.width and self.width % self.heads and self.head_width is None:
            raise ValueError(f"width must be a multiple of heads, or head_width said; {self.width}, {self.heads} came")
        return self


class PaperTeacher(PaperModel):
    precision: Literal["float32", "bf16", "int8"] = "bf16"


class PaperTrain(Section):
    precision: Literal["float32", "bf16"] = "bf16"
    weights: Literal["float32", "bf16"] = "float32"
    optimizer: Literal["sgd", "adamw"] = "adamw"
    recompute: bool = False
    texts: Amount | None = None

    @model_validator(mode="after")
    def _possible(self) -> "PaperTrain":
        if self.weights == "bf16" and self.precision == "float32":
            raise ValueError("weights: bf16 needs precision: bf16; float32 came")
        return self


class PaperHardware(Section):
    name: str = "h100-sxm"
    devices: Amount = 1
    shard: bool = True
    teacher_share: SomeShare | None = None
    student_share: SomeShare | None = None
    disk: Size = "2 GB"


class PaperStore(Section):
    codec: Literal["dense", "top-k", "sampled"] = "sampled"
    k: Amount = 32
    draws: Annotated[int, Field(ge=1, le=65535)] = 16
    different: Positive | None = None
    temperatures: list[Rate] = Field(default_factory=lambda: [1.0], min_length=1)

    @model_validator(mode="after")
    def _drawn(self) -> "PaperStore":
        if self.different is not None and not 1 <= self.different <= self.draws:
            raise ValueError(f"different must lie in 1…draws ({self.draws}); {self.different:g} came")
        if self.codec == "sampled" and len(self.temperatures) > 1:
            raise ValueError("temperatures: sampled draws at one; name one, or top-k")
        return self


class Paper(Section):
    """A job on paper, whole: from what to what over how much, on which hardware."""

    teacher: PaperTeacher
    student: PaperModel
    tokens: Amount
    length: Annotated[Amount, Field(le=2**24)] = 2048
    batch: Amount = 2**20
    epochs: Annotated[float, Field(gt=0, le=1e5)] = 1.0
    train: PaperTrain = PaperTrain()
    hardware: PaperHardware = PaperHardware()
    store: PaperStore = PaperStore()

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """`hardware: NAME` is short for `hardware: {name: NAME}`."""
        if isinstance(given, dict) and isinstance(given.get("hardware"), str):
            return given | {"hardware": {"name": given["hardware"]}}
        return given

    @model_validator(mode="after")
    def _possible(self) -> "Paper":
        if self.tokens < self.length:
            raise ValueError(f"tokens must be at least one text of {self.length} (length); {self.tokens} came")
        if self.batch < self.length:
            raise ValueError(f"batch, tokens a step, must be at least length ({self.length}); {self.batch} came")
        texts, devices = self.batch // self.length, self.hardware.devices
        if texts < devices:
            raise ValueError(f"batch: {devices} devices need a text each a step; {self.batch} tokens are {texts}")
        if self.hardware.name == "here" and devices > 1:
            raise ValueError(f"hardware.devices: here is one device; {devices} came")
        return self


def load_paper(job: str | Path, overrides: Sequence[str] = ()) -> Paper:
    """A validated job on paper from a YAML file or a built-in one's name, with `key.path=value` overrides; paths as in
    a recipe. Raises UserError in one line that names the key, what was required and what came.

    >>> load_paper("8b-1b", ["tokens=20B"]).tokens
    20000000000
    """
    return validated(Paper, read(job, overrides, {}, PAPER), "job")
