"""The names that `import edgestill` promises."""

import subprocess
import sys

import edgestill

TAKEN = """
import edgestill
for name in edgestill.__all__:
    __import__("edgestill.runs")
    first, second = getattr(edgestill, name), getattr(edgestill, name)
    space = {}
    exec(f"from edgestill import {name}", space)
    assert first is second is space[name], f"{name}: {first}, {second}, {space[name]}"
"""


def test_each_name_is_the_same_however_and_whenever_it_is_taken() -> None:
    """A module of the same name would take the place of a name that loads late, once it is imported."""
    taken = subprocess.run([sys.executable, "-c", TAKEN], capture_output=True, text=True)
    assert taken.returncode == 0, taken.stderr


def test_what_is_promised_is_what_works() -> None:
    kinds = {name: type(getattr(edgestill, name)).__name__ for name in edgestill.__all__}
    assert {name for name, kind in kinds.items() if kind == "module"} == {"losses"}
