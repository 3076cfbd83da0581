"""The recipe: everything that a run is told, as plain typed values. No torch, so that a typo is refused at once."""

from edgestill.recipe.candidates import Candidate, candidates
from edgestill.recipe.loading import STEP, load_recipe, load_recipes
from edgestill.recipe.sections import FromTeacher, Phase, Skill, Student, Teacher, Term, Width
from edgestill.recipe.values import EMULATED, FORMATS, IMAGES, RUNTIMES, SOFT_LOSSES, TERM_LOSSES, TRAINED
from edgestill.recipe.whole import LIMITS, Recipe, dump, validate

__all__ = [
    "EMULATED",
    "FORMATS",
    "IMAGES",
    "LIMITS",
    "RUNTIMES",
    "SOFT_LOSSES",
    "STEP",
    "TERM_LOSSES",
    "TRAINED",
    "Candidate",
    "FromTeacher",
    "Phase",
    "Recipe",
    "Skill",
    "Student",
    "Teacher",
    "Term",
    "Width",
    "candidates",
    "dump",
    "load_recipe",
    "load_recipes",
    "validate",
]
