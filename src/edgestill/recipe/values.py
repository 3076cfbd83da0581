"""The words and the kinds of values that a recipe is written in."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)

from edgestill.errors import UserError, closest
from edgestill.functions import FUNCTION
from edgestill.reading import PERCENT
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
    "attention_relation",
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
IMAGES = ("image-classification",)
TEXTS = ("text-classification", "sentence-embedding", "language-modeling", "instruction")
TEXT_FORMATS = ("onnx", "onnx-int8-dynamic")
"""Formats that text models are exported to."""
SCORERS = (
    "bits-per-byte",
    "perplexity",
    "exact-number",
    "exact-text",
    "multiple-choice",
    "instructions",
    "lm-eval",
)
MAPS = ("direct", "width", "depth", "first", "last", "auto", "origin", "every-N")


def as_value_error(parse: Callable[[Any], Any], keep_text: bool) -> Callable[[Any], Any]:
    """Unit errors are UserErrors; pydantic adds the key's path only to ValueErrors."""

    def check(value: Any) -> Any:
        try:
            parsed = parse(value)
        except UserError as error:
            raise ValueError(str(error)) from None
        return value if keep_text else parsed

    return check


def fraction(value: Any) -> Any:
    return as_value_error(parse_fraction, keep_text=False)(value) if isinstance(value, str) else value


def share_or_split(value: Any) -> Any:
    return fraction(value) if isinstance(value, str) and PERCENT.search(value) else value


def loss_name(names: Sequence[str]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in names and not FUNCTION.fullmatch(value):
            raise ValueError(
                f"must be one of {', '.join(names)} or file.py:function; {value!r} came{closest(value, names)}"
            )
        return value

    return check


def map_name(value: str) -> str:
    if value not in MAPS[:-1] and not re.fullmatch(r"every-[1-9]\d{0,3}", value):
        raise ValueError(f"must be one of {', '.join(MAPS)}; {value!r} came{closest(value, MAPS)}")
    return value


def scorer_name(value: str) -> str:
    if value not in SCORERS and not FUNCTION.fullmatch(value):
        raise ValueError(
            f"must be one of {', '.join(SCORERS)} or file.py:function; {value!r} came{closest(value, SCORERS)}"
        )
    return value


def format_name(value: str) -> str:
    if value not in FORMATS:
        raise ValueError(f"must be one of {', '.join(FORMATS)}; {value!r} came{closest(value, FORMATS)}")
    return value


def written(**number: Any) -> WithJsonSchema:
    """Both ways of writing a share, for the schema: 0.85, and "85 %"."""
    text = {"type": "string", "pattern": PERCENT.pattern}
    return WithJsonSchema({"anyOf": [{"type": "number", "maximum": 1, **number}, text]})


Size = Annotated[str, BeforeValidator(as_value_error(parse_bytes, keep_text=True))]
Duration = Annotated[str, BeforeValidator(as_value_error(parse_seconds, keep_text=True))]
Fraction = Annotated[float, BeforeValidator(fraction), Field(ge=0, le=1), written(minimum=0)]
SomeShare = Annotated[float, BeforeValidator(fraction), Field(gt=0, le=1), written(exclusiveMinimum=0)]
Quality = Annotated[
    float,
    BeforeValidator(fraction),
    Field(ge=0, allow_inf_nan=False),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": PERCENT.pattern}]}),
]
"""A share, or bits per byte."""
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
