"""edgestill: distil a large model into one that runs on an edge device, and prove what was kept.

Names load when they are first used, so that importing edgestill imports nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "UserError": "edgestill.errors",
    "Recipe": "edgestill.recipe",
    "load_recipe": "edgestill.recipe",
    "load_recipes": "edgestill.recipe",
    "run": "edgestill.runs",
    "run_students": "edgestill.several",
    "run_steps": "edgestill.steps",
    "search": "edgestill.planner",
    "Objective": "edgestill.objective",
    "Term": "edgestill.objective",
    "Signal": "edgestill.signals",
    "record": "edgestill.taps",
    "stages": "edgestill.taps",
    "layer_map": "edgestill.mapping",
    "Phase": "edgestill.schedule",
    "Schedule": "edgestill.schedule",
    "load_model": "edgestill.models",
}

if TYPE_CHECKING:
    from edgestill import losses as losses
    from edgestill.errors import UserError as UserError
    from edgestill.mapping import layer_map as layer_map
    from edgestill.models import load_model as load_model
    from edgestill.objective import Objective as Objective
    from edgestill.objective import Term as Term
    from edgestill.planner import search as search
    from edgestill.recipe import Recipe as Recipe
    from edgestill.recipe import load_recipe as load_recipe
    from edgestill.recipe import load_recipes as load_recipes
    from edgestill.runs import run as run
    from edgestill.schedule import Phase as Phase
    from edgestill.schedule import Schedule as Schedule
    from edgestill.several import run_students as run_students
    from edgestill.signals import Signal as Signal
    from edgestill.steps import run_steps as run_steps
    from edgestill.taps import record as record
    from edgestill.taps import stages as stages

__all__ = ["losses", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("edgestill.losses")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edgestill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
