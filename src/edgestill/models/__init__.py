"""A model from a spec, what it expects of its input, its weights, and the folder that a student is saved to."""

from edgestill.models.embedding import embed, embedding_of
from edgestill.models.loading import load_model, timm_models
from edgestill.models.model import (
    Expected,
    ImageInput,
    Model,
    as_inputs,
    example,
    flops,
    forward,
    plain_logits,
    select_classes,
    to_device,
)
from edgestill.models.precision import Precision, dequantized, in_float32, lower
from edgestill.models.saving import STUDENT_FILE, reload, save_student, save_weights
from edgestill.models.text_input import Encoded, TextInput
from edgestill.models.texts import Head, load_text_model
from edgestill.models.weights import fingerprint, load_weights

__all__ = [
    "STUDENT_FILE",
    "Encoded",
    "Expected",
    "Head",
    "ImageInput",
    "Model",
    "Precision",
    "TextInput",
    "as_inputs",
    "dequantized",
    "embed",
    "embedding_of",
    "example",
    "fingerprint",
    "flops",
    "forward",
    "in_float32",
    "load_model",
    "load_text_model",
    "load_weights",
    "lower",
    "plain_logits",
    "reload",
    "save_student",
    "save_weights",
    "select_classes",
    "timm_models",
    "to_device",
]
