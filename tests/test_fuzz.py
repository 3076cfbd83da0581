"""Five hundred mutated recipes: each ends with a clear exit code, never a traceback, never a hang."""

import copy
import random
import signal

import pytest
import yaml

from edgestill.cli import main
from edgestill.reading import builtin

VALUES = [
    None, True, False, -1, 0, 1, 3, 0.5, -0.0, 1e308, 10**40, float("nan"), float("inf"), "", "x", "\u0000", "é😀",
    "20 KB", "1e-3", "../..", "~", "/", "digits.py:teacher", "a" * 5000, [], {}, [1], {"a": 1}, [[[[[]]]]],
]  # fmt: skip
KEYS = ["foo", "alpha", "weights", "é", "1", ""]

FEW = """
from sklearn.datasets import load_digits

def splits():
    digits = load_digits()
    pixels = (digits.images * 15).astype("uint8")
    return {"train": (pixels[:300], digits.target[:300]), "test": (pixels[300:500], digits.target[300:500])}
"""


def places(value, path=()):
    """Every place in nested values, by the keys that lead there."""
    if path:
        yield path
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(child, (*path, key))


def mutate(recipe: dict, generator: random.Random) -> dict:
    recipe = copy.deepcopy(recipe)
    for _ in range(generator.choice([1, 1, 2, 3])):
        path = generator.choice(list(places(recipe)) or [("task",)])
        parent = recipe
        for key in path[:-1]:
            parent = parent[key]
        how = generator.random()
        if how < 0.55:
            parent[path[-1]] = generator.choice(VALUES)
        elif how < 0.7:
            del parent[path[-1]]
        elif how < 0.85 and isinstance(parent, dict):
            parent[generator.choice(KEYS)] = generator.choice(VALUES)
        else:
            parent[path[-1]] = {"x": parent[path[-1]]} if generator.random() < 0.5 else [parent[path[-1]]]
    return recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "few.py").write_text(FEW)
    recipe = yaml.safe_load(builtin()["digits"].read_text())
    models = builtin()["digits"].parent / "digits.py"
    recipe["data"] = {"source": f"{folder / 'few.py'}:splits", "validation": 0.2, "labels_per_class": 5}
    recipe["teacher"] = {"model": f"{models}:student", "fit": {"epochs": 3, "batch_size": 32}, "options": {}}
    recipe["student"] = {"model": f"{models}:student", "input": {"size": 8}}
    recipe["train"] |= {"epochs": 0.5, "batch_size": 32, "views": {"crop": 1, "flip": False, "policy": "none"}}
    recipe["compare"] = {"seeds": 1}
    recipe["distill"] |= {"loss": "dkd", "standardize": True, "options": {"target_weight": 1.0}}
    recipe["distill"]["terms"] = [
        {"loss": "hint", "student": "stage1", "teacher": "stage1", "weight": 0.1, "map": "direct"},
        {"loss": "crd", "map": "last", "weight": "balanced", "aligner": "auto", "options": {"negatives": 16}},
        {"loss": "rkd", "student": ["stage3"], "map": "auto", "options": {"distance": 1.0, "angle": 2.0}},
    ]
    recipe["student"]["classifier"] = "own"
    recipe["data"]["on_error"] = "skip"
    return recipe


@pytest.fixture(autouse=True)
def no_hang():
    """An alarm that nobody stopped is a hang."""

    def hang(number, frame):
        raise TimeoutError("a recipe took longer than two minutes")

    previous = signal.signal(signal.SIGALRM, hang)
    yield
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("block", range(10))
def test_mutated_recipes_end_with_an_exit_code(block, base, tmp_path, capsys):
    for seed in range(50 * block, 50 * (block + 1)):
        path = tmp_path / f"{seed}.yaml"
        path.write_text(yaml.dump(mutate(base, random.Random(seed)), allow_unicode=True), encoding="utf-8")
        signal.alarm(120)
        code = main(["train", str(path), "--out", str(tmp_path / str(seed)), "--quiet"])
        signal.alarm(0)
        said = capsys.readouterr().err
        assert code in (0, 2, 3)
        assert code != 2 or (said.startswith("edgestill: ") and said.count("\n") == 1), said
