"""Taps: named places in a model whose outputs are recorded. Nothing of them stays in the model."""

from edgestill.taps.finding import Tap, found, stages
from edgestill.taps.recording import record

__all__ = ["Tap", "found", "record", "stages"]
