"""Cases of losses/logits.py: each with a reference written from its formula in NumPy, float64."""

from loss_checks import Case

LOGITS: dict[str, Case] = {}
