"""Relations between the tokens of a text: against loops over them in NumPy, with padding and causality left out."""

import numpy as np
import pytest
import torch
from torch import Tensor

from edgestill.errors import UserError
from edgestill.losses import attention_relation

B, T = 3, 5
VALID = torch.arange(T) < torch.tensor([5, 2, 4])[:, None]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference(student: Tensor, teacher: Tensor, heads: int | None, causal: bool, valid: Tensor) -> float:
    def cut(x: Tensor) -> np.ndarray:
        values = x.detach().numpy()
        if heads is None:
            return values
        side_by_side = np.concatenate(list(values.transpose(1, 0, 2, 3)), axis=-1)
        return np.stack(np.split(side_by_side, heads, axis=-1), axis=1)

    def share(vectors: np.ndarray, query: int, keys: list[int]) -> np.ndarray:
        scores = np.array([vectors[query] @ vectors[key] for key in keys]) / np.sqrt(vectors.shape[-1])
        return np.exp(scores) / np.exp(scores).sum()

    first, second = cut(student), cut(teacher)
    total = 0.0
    for text in range(len(first)):
        tokens = [token for token in range(T) if valid[text, token]]
        for query in tokens:
            keys = [key for key in tokens if key <= query or not causal]
            for head in range(first.shape[1]):
                s, t = share(first[text, head], query, keys), share(second[text, head], query, keys)
                total += (t * np.log(t / s)).sum() / first.shape[1]
    return total / int(valid.sum())


CASES = {
    "values of as many heads": ((B, 2, T, 4), (B, 2, T, 6), {}),
    "relation heads": ((B, 2, T, 4), (B, 3, T, 8), {"heads": 4}),
    "one relation head": ((B, 2, T, 3), (B, 2, T, 3), {"heads": 1}),
    "causal": ((B, 2, T, 4), (B, 2, T, 6), {"causal": True}),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_value_is_the_mean_over_tokens_and_heads(name: str, masked: bool) -> None:
    one, other, options = CASES[name]
    student, teacher = random(*one), random(*other, seed=1)
    mask = VALID if masked else None
    wanted = reference(
        student, teacher, options.get("heads"), options.get("causal", False), VALID if masked else VALID | True
    )
    assert float(attention_relation(student, teacher, mask=mask, **options)) == pytest.approx(wanted, rel=1e-9)
    counted = attention_relation(student, teacher, mask=mask, count=7, **options)
    tokens = int(VALID.sum()) if masked else B * T
    assert float(counted) == pytest.approx(wanted * tokens / 7, rel=1e-9)


@pytest.mark.parametrize("options", [{"causal": True}, {"heads": 1}, {}])
def test_the_reference_tells_the_variants_apart(options: dict) -> None:
    """The check above can fail: another variant of the loss has another value."""
    student, teacher = random(B, 2, T, 4), random(B, 2, T, 4, seed=1)
    others = [{"causal": True}, {"heads": 1}, {}]
    found = [float(attention_relation(student, teacher, mask=VALID, **other)) for other in others]
    wanted = reference(student, teacher, options.get("heads"), options.get("causal", False), VALID)
    assert [value == pytest.approx(wanted, rel=1e-9) for value in found] == [other == options for other in others]


def test_padding_has_neither_a_value_nor_a_gradient() -> None:
    student = random(B, 2, T, 4).requires_grad_()
    teacher = random(B, 2, T, 4, seed=1).requires_grad_()
    filled = student.detach().clone()
    filled.transpose(1, 2)[~VALID] = torch.nan
    attention_relation(student, teacher, mask=VALID).backward()
    assert teacher.grad is None
    assert not student.grad.transpose(1, 2)[~VALID].any()
    assert student.grad.transpose(1, 2)[VALID].any()


def test_it_is_zero_at_equality_with_a_gradient_of_zero() -> None:
    student = random(B, 2, T, 4).requires_grad_()
    loss = attention_relation(student, student, mask=VALID, causal=True)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert float(student.grad.abs().max()) < 1e-9


def test_shapes_that_do_not_fit_are_one_line() -> None:
    for one, other, options, said in (
        ((B, 2, T, 4), (B, 3, T, 4), {}, r"as many heads, or the option `heads`; \[3, 2, 5, 4\] and \[3, 3, 5, 4\]"),
        ((B, 2, T, 4), (B, 2, T + 1, 4), {"heads": 2}, "of the same tokens"),
        ((B, 2, T, 4), (B, 2, T, 4), {"heads": 3}, "3 heads do not divide a width of 8"),
        ((B, T, 4), (B, T, 4), {}, r"a tap of shape \[3, 5, 4\] came"),
    ):
        with pytest.raises(UserError, match=said):
            attention_relation(random(*one), random(*other), **options)


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher = random(B, 2, T, 4).bfloat16(), random(B, 2, T, 4, seed=1).bfloat16()
    exact = attention_relation(student.double(), teacher.double())
    assert float(attention_relation(student, teacher)) == pytest.approx(float(exact), rel=1e-5)
