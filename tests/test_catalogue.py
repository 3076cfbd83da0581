"""`edgestill losses`: each loss with its value, gradient and balancing weight on a standard pair."""

import json

import pytest
import torch

from edgestill.cli import main
from edgestill.losses import SOFT_LOSSES, TERM_LOSSES


@pytest.fixture(scope="module")
def rows():
    from edgestill.catalogue import measured

    return {row["name"]: row for row in measured()}


def test_every_loss_is_listed_with_finite_numbers(rows):
    assert [*rows] == ["cross_entropy", *SOFT_LOSSES, *TERM_LOSSES]
    numbers = torch.tensor([[row["value"], row["gradient_norm"]] for row in rows.values()])
    assert torch.isfinite(numbers).all()
    assert (numbers > 0).all()


def test_the_weight_makes_a_terms_gradient_as_large_as_the_soft_part(rows):
    for name in TERM_LOSSES:
        row = rows[name]
        assert row["place"] == "terms"
        assert row["balanced_weight"] * row["gradient_norm"] == pytest.approx(0.9 * rows["kl"]["gradient_norm"])
    assert rows["kl"]["balanced_weight"] is None


def test_options_are_those_of_the_loss_and_of_its_module(rows):
    assert rows["rkd"]["options"] == {"distance": 25.0, "angle": 50.0}
    assert rows["crd"]["options"]["negatives"] == 2048
    assert rows["cwd"]["options"] == {"temperature": 1.0}
    assert rows["kl"]["options"] == {}  # temperature is distill.temperature


def test_the_command_prints_a_table_or_json(capsys):
    assert main(["losses"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:2] == ["loss", "in"]
    assert len({line.index("distill.loss") for line in table if "distill.loss" in line}) == 1  # aligned
    assert main(["losses", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} >= {"kl", "crd", "review"}
