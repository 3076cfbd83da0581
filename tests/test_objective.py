"""The objective: (1 − alpha)·CE + alpha·D + Σ weight·term, as named parts."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from edgestill.aligners import MapAligner
from edgestill.errors import UserError
from edgestill.losses import attention_transfer, cross_entropy, cwd, hint, kl, nst, pyramid, rkd
from edgestill.objective import BALANCE_STEPS, Balance, Objective, Term
from edgestill.signals import Signal

B, C = 5, 3
GENERATOR = torch.Generator().manual_seed(0)
LOGITS, TEACHER = torch.randn(B, C, generator=GENERATOR), torch.randn(B, C, generator=GENERATOR)
LABELS = torch.tensor([0, 2, -1, 1, -1])
TAPS = {"s1": torch.randn(B, 4, 6, 6, generator=GENERATOR), "s2": torch.randn(B, 8, 3, 3, generator=GENERATOR)}
TEACHER_TAPS = {"t1": torch.randn(B, 4, 6, 6, generator=GENERATOR), "t2": torch.randn(B, 16, 4, 4, generator=GENERATOR)}
SIGNAL = Signal(TEACHER, TEACHER_TAPS)
TERMS = {"hint/s1": Term(hint, "s1", "t1", 10.0), "attention_transfer/s2": Term(attention_transfer, "s2", "t2", 0.5)}


def refuse(*_arguments, **_options):
    raise AssertionError("must not be computed")


def test_the_loss_is_the_weighted_sum_of_the_formula():
    objective = Objective(alpha=0.7, temperature=3.0, terms=TERMS, examples=(TAPS, TEACHER_TAPS))
    parts = objective(LOGITS, LABELS, SIGNAL, TAPS)
    expected = {
        "hard": (0.3, cross_entropy(LOGITS, LABELS)),
        "soft": (0.7, kl(LOGITS, TEACHER, temperature=3.0)),
        "hint/s1": (10.0, hint(TAPS["s1"], TEACHER_TAPS["t1"])),
        "attention_transfer/s2": (0.5, attention_transfer(TAPS["s2"], TEACHER_TAPS["t2"])),
    }
    assert [*parts.values] == [*expected]
    assert parts.weights == pytest.approx({name: weight for name, (weight, _) in expected.items()})
    for name, (_, value) in expected.items():
        torch.testing.assert_close(parts.values[name], value)
    torch.testing.assert_close(parts.loss, sum(weight * value for weight, value in expected.values()))


def test_unlabelled_samples_learn_from_the_teacher_alone():
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Objective(alpha=0.0)(logits, LABELS, None).loss, logits)
    assert [bool(row.any()) for row in gradient] == [True, True, False, True, False]
    (gradient,) = torch.autograd.grad(Objective(alpha=0.5)(logits, LABELS, SIGNAL).values["soft"], logits)
    assert all(bool(row.any()) for row in gradient)


@pytest.mark.parametrize("own", [True, False])
def test_a_part_of_weight_zero_is_not_computed(own, monkeypatch):
    alpha = {} if own else {"alpha": 0.0}
    baseline = Objective(loss=refuse, alpha=0.0 if own else 0.9)(LOGITS, LABELS, None, **alpha)
    assert [*baseline.values] == ["hard"]
    torch.testing.assert_close(baseline.loss, cross_entropy(LOGITS, LABELS))
    monkeypatch.setattr("edgestill.objective.cross_entropy", refuse)
    alpha = {} if own else {"alpha": 1.0}
    soft = Objective(alpha=1.0 if own else 0.9)(LOGITS, LABELS, SIGNAL, **alpha)
    assert [*soft.values] == ["soft"]


def test_a_schedule_sets_alpha_temperature_and_terms_of_a_call():
    objective = Objective(alpha=0.7, temperature=3.0, terms=TERMS, examples=(TAPS, TEACHER_TAPS))
    parts = objective(LOGITS, LABELS, SIGNAL, TAPS, alpha=0.2, temperature=1.0, terms=["attention_transfer/s2"])
    assert [*parts.values] == ["hard", "soft", "attention_transfer/s2"]
    assert parts.weights["soft"] == 0.2
    torch.testing.assert_close(parts.values["soft"], kl(LOGITS, TEACHER))
    assert [*objective(LOGITS, LABELS, SIGNAL, alpha=0.2, terms=()).values] == ["hard", "soft"]
    assert [*objective(LOGITS, LABELS, None, alpha=0.0, terms=()).values] == ["hard"]
    assert [*objective(LOGITS, LABELS, SIGNAL, TAPS).values] == ["hard", "soft", *TERMS]  # its own hold again


def test_without_a_signal_alpha_and_terms_are_refused():
    objective = Objective(alpha=0.5, terms=TERMS, examples=(TAPS, TEACHER_TAPS))
    for options in ({"terms": ()}, {"alpha": 0.0}):
        with pytest.raises(UserError, match="needs the teacher's signal"):
            objective(LOGITS, LABELS, None, TAPS, **options)


def test_what_is_missing_is_named():
    objective = Objective(terms=TERMS, examples=(TAPS, TEACHER_TAPS))
    with pytest.raises(UserError, match="no term 'hint/s2'; did you mean 'hint/s1'"):
        objective(LOGITS, LABELS, SIGNAL, TAPS, terms=["hint/s2"])
    with pytest.raises(UserError, match="term 'hint/s1' needs the student's tap 's1'; recorded: none"):
        objective(LOGITS, LABELS, SIGNAL)
    with pytest.raises(UserError, match="term 'attention_transfer/s2' needs the teacher's tap 't2'; recorded: 't1'"):
        objective(LOGITS, LABELS, Signal(TEACHER, {"t1": TEACHER_TAPS["t1"]}), TAPS)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(UserError, match="alpha must lie in 0…1"):
        Objective(alpha=alpha)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(UserError, match="temperature must be above 0"):
        Objective(temperature=temperature)


def test_label_smoothing_and_a_mask_reach_the_hard_part_alone():
    probabilities = torch.full((B, C), 1 / C)
    mask = torch.tensor([True, False, True, False, False])
    parts = Objective(alpha=0.5, label_smoothing=0.2)(LOGITS, probabilities, SIGNAL, mask=mask)
    torch.testing.assert_close(parts.values["hard"], cross_entropy(LOGITS[mask], probabilities[mask]))
    torch.testing.assert_close(parts.values["soft"], kl(LOGITS, TEACHER, temperature=4.0))
    parts = Objective(alpha=0.0, label_smoothing=0.2)(LOGITS, LABELS, None)
    torch.testing.assert_close(parts.loss, cross_entropy(LOGITS, LABELS, smoothing=0.2))


def test_aligners_stand_where_shapes_differ_and_train_with_the_objective():
    terms = {"same": Term(hint, "s1", "t1"), "other": Term(hint, "s2", "t2")}
    objective = Objective(terms=terms, examples=(TAPS, TEACHER_TAPS))
    assert [type(aligner) for aligner in objective.aligners] == [nn.Identity, MapAligner]
    parts = objective(LOGITS, LABELS, SIGNAL, TAPS)
    parts.loss.backward()
    assert [*objective.parameters()]
    assert all(parameter.grad is not None for parameter in objective.parameters())
    aligned = objective.aligners[1](TAPS["s2"])
    torch.testing.assert_close(parts.values["other"], hint(aligned, TEACHER_TAPS["t2"]))


def test_its_state_can_be_saved_and_loaded():
    first, second = (
        Objective(terms={"hint/s2": Term(hint, "s2", "t2")}, examples=(TAPS, TEACHER_TAPS)) for _ in range(2)
    )
    second.load_state_dict(first.state_dict())
    values = [objective.eval()(LOGITS, LABELS, SIGNAL, TAPS).values["hint/s2"] for objective in (first, second)]
    assert torch.equal(*values)


@pytest.mark.parametrize("loss", [attention_transfer, partial(attention_transfer, power=1.0)])
def test_a_loss_that_pools_the_channels_away_gets_no_aligner(loss):
    objective = Objective(terms={"term": Term(loss, "s2", "t2")}, examples=(TAPS, TEACHER_TAPS))
    assert not [*objective.parameters()]
    parts = objective(LOGITS, LABELS, SIGNAL, TAPS)
    torch.testing.assert_close(parts.values["term"], loss(TAPS["s2"], TEACHER_TAPS["t2"]))


@pytest.mark.parametrize("loss", [attention_transfer, nst, rkd, pyramid, cwd, hint])
def test_maps_with_the_channels_last_are_compared_as_maps(loss):
    """As Swin puts them out: [B, H, W, C]."""
    student, maps = TAPS["s2"], TEACHER_TAPS["t2"]
    values = []
    for teacher in (maps, maps.permute(0, 2, 3, 1)):
        torch.manual_seed(0)
        objective = Objective(terms={"term": Term(loss, "s", "t")}, examples=({"s": student}, {"t": teacher}))
        values.append(objective(LOGITS, LABELS, Signal(TEACHER, {"t": teacher}), {"s": student}).values["term"])
    torch.testing.assert_close(*values)


def test_queries_are_no_maps_even_where_heads_and_tokens_are_as_many():
    queries = torch.randn(2, 4, 4, 8, generator=GENERATOR)
    seen = []

    def keep(student, teacher):
        seen.append(student)
        return (student - teacher).sum()

    objective = Objective(terms={"term": Term(keep, "s@queries", "t@queries", aligner="none")})
    objective(LOGITS[:2], LABELS[:2], Signal(TEACHER[:2], {"t@queries": queries}), {"s@queries": queries})
    assert torch.equal(seen[0], queries)


def test_options_bound_to_a_loss_hold():
    def scaled(student, teacher, *, temperature=1.0, scale=1.0):
        return scale * kl(student, teacher, temperature=temperature)

    parts = Objective(loss=partial(scaled, scale=7.0), alpha=0.5, temperature=2.0)(LOGITS, LABELS, SIGNAL)
    torch.testing.assert_close(parts.values["soft"], 7 * kl(LOGITS, TEACHER, temperature=2.0))


def test_terms_without_an_aligner_demand_equal_shapes():
    examples = (TAPS, TEACHER_TAPS)
    Objective(terms={"same": Term(hint, "s1", "t1", aligner="none")}, examples=examples)
    with pytest.raises(UserError, match=r"'s2' .* 't2': .* \[8, 3, 3\] and \[16, 4, 4\] came: use `map: width`"):
        Objective(terms={"other": Term(hint, "s2", "t2", aligner="none")}, examples=examples)


class Both(nn.Module):
    """A module of a loss: sees both sides and the samples."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("seen", torch.zeros(B, dtype=torch.long))

    def forward(self, student, teacher, indices):
        self.seen += indices
        return self.scale * student, teacher


def test_a_loss_with_a_module_gets_what_it_makes_of_both_sides():
    terms = {"own": Term(hint, "s1", "t1", module=Both)}
    objective, indices = Objective(terms=terms), torch.arange(B)
    parts = objective(LOGITS, LABELS, SIGNAL, TAPS, indices=indices)
    torch.testing.assert_close(parts.values["own"], hint(2 * TAPS["s1"], TEACHER_TAPS["t1"]))
    parts.loss.backward()
    assert objective.aligners[0].scale.grad.abs() > 0
    again = Objective(terms=terms)
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again.aligners[0].seen, indices)  # its memory is in the checkpoint
    assert Objective(terms=terms).aligners[0] is not objective.aligners[0]  # each objective has its own


def test_a_term_over_several_taps_gets_lists():
    class First(nn.Module):
        def forward(self, students, teachers, indices):
            return students[1], teachers[0]

    term = Term(hint, ("s2", "s1"), ("t1", "t2"), module=First)
    objective = Objective(terms={"joint": term})
    assert (objective.student_taps, objective.teacher_taps) == (["s1", "s2"], ["t1", "t2"])
    parts = objective(LOGITS, LABELS, SIGNAL, TAPS)
    torch.testing.assert_close(parts.values["joint"], hint(TAPS["s1"], TEACHER_TAPS["t1"]))


def test_a_loss_that_takes_labels_gets_class_numbers():
    seen = []

    def asking(student, teacher, *, labels, count=None):
        seen.append(labels)
        return student.sum() * 0

    objective = Objective(loss=asking, alpha=0.5, terms={"t": Term(asking, "s1", "t1")}, examples=(TAPS, TEACHER_TAPS))
    objective(LOGITS, LABELS, SIGNAL, TAPS)
    assert [numbers.tolist() for numbers in seen] == [LABELS.tolist()] * 2
    mixed = torch.tensor([[0.2, 0.8, 0.0]] * 3 + [[1.0, 0.0, 0.0]] * 2)
    objective(LOGITS, mixed, SIGNAL, TAPS, mask=torch.tensor([True, True, False, True, False]))
    assert seen[-1].tolist() == [1, 1, -1, 0, -1]


def test_without_a_soft_loss_the_terms_alone_speak_for_the_teacher():
    terms = {"hint": Term(hint, "s1", "t1")}
    parts = Objective(loss=None, alpha=1.0, terms=terms, examples=(TAPS, TEACHER_TAPS))(LOGITS, LABELS, SIGNAL, TAPS)
    assert [*parts.values] == ["hint"]


def test_standardized_logits_do_not_see_shift_and_scale():
    objective = Objective(alpha=1.0, standardize=True)
    parts = objective(3 * TEACHER + 5, LABELS, SIGNAL)
    assert parts.values["soft"].item() == pytest.approx(0.0, abs=1e-6)
    assert Objective(alpha=1.0)(3 * TEACHER + 5, LABELS, SIGNAL).values["soft"].item() > 0.01


def test_a_balanced_term_pulls_as_hard_as_the_soft_part_and_then_holds():
    """By hand: the gradient of a sum of squares doubles with the scale, so the weight halves."""
    layer = nn.Linear(4, 4, bias=False)
    teacher, features = torch.randn(8, 4, generator=GENERATOR), torch.randn(8, 4, generator=GENERATOR)
    labels = torch.zeros(8, dtype=torch.long)
    signal = Signal(teacher, {"t": torch.randn(8, 4, generator=GENERATOR)})
    terms = {"one": Term(hint, "s", "t", "balanced", share=0.5)}
    objective = Objective(alpha=0.5, terms=terms, examples=({"s": features}, signal.taps))
    parameters = [*layer.parameters()]

    def step(scale=1.0):
        outputs = layer(features)
        parts = objective(outputs, labels, signal, {"s": scale * outputs})
        return objective.balance(parts, parameters) if objective.balancing else parts

    def norms(parts):
        return [
            torch.autograd.grad(parts.weights[name] * parts.values[name], parameters, retain_graph=True)[0].norm()
            for name in ("soft", "one")
        ]

    first = step()
    soft, one = norms(first)
    torch.testing.assert_close(0.5 * soft, one)
    for _ in range(BALANCE_STEPS - 1):
        step()
    assert not objective.balancing
    assert step(scale=9.0).weights["one"] == pytest.approx(first.weights["one"])
    resumed = Objective(alpha=0.5, terms=terms, examples=({"s": features}, signal.taps))
    resumed.load_state_dict(objective.state_dict())
    assert not resumed.balancing
    assert resumed.balances == objective.balances


def test_one_step_that_explodes_does_not_decide_a_balance():
    balance = Balance()
    for target in [2.0] * 9 + [2e6, math.inf, math.nan] + [2.0] * 8:
        balance.add(target, 1.0)
    assert balance.held
    assert 2.0 <= balance.weight < 5.0
    silent = Balance()
    for _ in range(BALANCE_STEPS):
        silent.add(1.0, 0.0)  # a term without a gradient
    assert (silent.held, silent.weight) == (True, 0.0)


def test_a_frozen_weight_counts_for_nothing_in_the_balance():
    """As the teacher's classifier in its student."""
    layer, frozen = nn.Linear(4, 4, bias=False), nn.Linear(4, 4).requires_grad_(False)
    features, teacher = torch.randn(2, 8, 4, generator=GENERATOR)
    objective = Objective(alpha=0.5, terms={"one": Term(hint, "s", "t", "balanced")})
    outputs = layer(features)
    parts = objective(
        frozen(outputs), torch.zeros(8, dtype=torch.long), Signal(teacher, {"t": teacher}), {"s": outputs}
    )
    assert objective.balance(parts, [*layer.parameters(), *frozen.parameters()]).weights["one"] > 0


def test_a_balanced_term_beside_nothing_over_logits_is_refused():
    objective = Objective(alpha=1.0, loss=None, terms={"one": Term(hint, "s", "t", "balanced")})
    parts = objective(LOGITS, LABELS, Signal(TEACHER, {"t": TEACHER}), {"s": LOGITS.clone().requires_grad_()})
    with pytest.raises(UserError, match="'one' needs a part over logits"):
        objective.balance(parts, [])


def test_the_taps_are_named_once_each():
    terms = TERMS | {"hint/s1'": Term(hint, "s1", "t2")}
    objective = Objective(terms=terms)
    assert objective.student_taps == ["s1", "s2"]
    assert objective.teacher_taps == ["t1", "t2"]


def test_bf16_outputs_of_autocast_are_taken():
    objective = Objective(terms={"hint/s2": Term(hint, "s2", "t2", 0.5)}, examples=(TAPS, TEACHER_TAPS)).eval()
    exact = objective(LOGITS, LABELS, SIGNAL, TAPS)
    signal = Signal(TEACHER.bfloat16(), {name: tap.bfloat16() for name, tap in TEACHER_TAPS.items()})
    rounded = objective(LOGITS.bfloat16(), LABELS, signal, {name: tap.bfloat16() for name, tap in TAPS.items()})
    assert rounded.loss.dtype == torch.float32
    for name, value in exact.values.items():
        torch.testing.assert_close(rounded.values[name], value, rtol=0.02, atol=0.0)


def test_in_anybodys_loop_it_teaches_the_student_what_the_teacher_knows():
    """Forty steps without one label: a linear student comes to agree with its linear teacher."""
    torch.manual_seed(0)
    teacher, student, inputs = nn.Linear(8, C), nn.Linear(8, C), torch.randn(256, 8)
    objective = Objective(alpha=0.9, temperature=2.0)
    optimizer = torch.optim.SGD(student.parameters(), lr=2.0)
    unlabelled, losses = torch.full((256,), -1), []
    for _ in range(40):
        parts = objective(student(inputs), unlabelled, Signal(teacher(inputs)))
        optimizer.zero_grad()
        parts.loss.backward()
        optimizer.step()
        losses.append(parts.loss.item())
    assert losses[-1] < losses[0] / 100
    assert (student(inputs).argmax(1) == teacher(inputs).argmax(1)).float().mean() > 0.95
    assert all(parameter.grad is None for parameter in teacher.parameters())
