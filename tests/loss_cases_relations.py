"""Cases of losses/relations.py: each with a reference written from its formula in NumPy, float64."""

from loss_checks import Case

RELATIONS: dict[str, Case] = {}
