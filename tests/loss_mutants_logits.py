"""Mutants of the losses over logits: the mistakes that known software has made with them, and those near at hand.

Each is wrong for the case it is named with, whose options it has; and names the check that must see it.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from edgestill.losses import dist, dkd, kl, nkd, skewed_kl
from edgestill.losses.logits import divergence, log_probabilities
from edgestill.losses.reduce import masked_mean, wide
from loss_cases_logits import labelled

T = 3.0


def logs(student: Tensor, teacher: Tensor, temperature: float = T, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return log_probabilities(student, temperature, mask), log_probabilities(teacher.detach(), temperature, mask)


def of_rows(row: Callable[[Tensor, Tensor], Tensor], scale: float = T**2) -> Callable[..., Tensor]:
    """A loss of the log-probabilities of each row."""
    return lambda s, t, mask=None, count=None: scale * masked_mean(row(*logs(s, t, mask=mask)), mask, count)


def mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    return (share * first.exp() + (1 - share) * second.exp()).log()


def shannon(s: Tensor, t: Tensor, *, mixture: float = 0.3, teacher: float = 0.3) -> Tensor:
    m = mixed(t, s, mixture)
    return teacher * divergence(t, m) + (1 - teacher) * divergence(s, m)


def cross_entropy_to_mixture(s: Tensor, t: Tensor) -> Tensor:
    """distillm, forward and skewed: the teacher's entropy kept."""
    return -(t.exp() * mixed(t, s, 0.2)).sum(-1)


def student_detached_in_the_mixture(s: Tensor, t: Tensor) -> Tensor:
    """distillm-2."""
    return divergence(s, mixed(s.detach(), t, 0.2))


def by_the_students_answer(s: Tensor, t: Tensor, **keywords) -> Tensor:
    return dkd(s, t, labels=s.argmax(-1), temperature=T, **keywords)


def others_in_their_share(s: Tensor, t: Tensor, **keywords) -> Tensor:
    """NKD without its normalisation: the others' probabilities as they are, T = 3, weight 1.5."""
    mask = keywords.get("mask")
    (s_log, t_log), target = logs(s, t, mask=mask), wide(t, mask).argmax(-1, keepdim=True)
    others = (t_log.exp() * (t_log - s_log)).scatter(-1, target, 0.0).sum(-1)
    return nkd(s, t, other_weight=0.0, **keywords) + 1.5 * T**2 * masked_mean(others, mask, keywords.get("count"))


def correlations(student: Tensor, teacher: Tensor, *, centred: bool = True) -> Tensor:
    if centred:
        student, teacher = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    return 1 - functional.cosine_similarity(student, teacher, dim=1)


def cosines(s: Tensor, t: Tensor, mask=None, count=None) -> Tensor:
    """Not centred. The mask is right, the count is not asked for."""
    rows = slice(None) if mask is None else mask
    s, t = (s[rows] / T).softmax(1), (t.detach()[rows] / T).softmax(1)
    return T**2 * (correlations(s, t, centred=False).mean() + correlations(s.T, t.T, centred=False).mean())


def of_raw_logits(s: Tensor, t: Tensor, mask=None, count=None) -> Tensor:
    rows = slice(None) if mask is None else mask
    return T**2 * (correlations(s[rows], t[rows]).mean() + correlations(s[rows].T, t[rows].T).mean())


def masked_rows_as_zeros(s: Tensor, t: Tensor, mask=None, count=None) -> Tensor:
    """In a relation what is masked must be left out: as zeros it is a sample like others."""
    if mask is None:
        return dist(s, t, temperature=T, count=count)
    return dist(wide(s, mask), wide(t, mask), temperature=T, count=count)


def intra_without_count(s: Tensor, t: Tensor, mask=None, count=None) -> Tensor:
    return dist(s, t, intra=0.0, temperature=T, mask=mask, count=count) + dist(
        s, t, inter=0.0, temperature=T, mask=mask
    )


def only_yes(s: Tensor, t: Tensor, mask=None, count=None) -> Tensor:
    """The part of binary KL for what is not there forgotten."""
    s_log, t_log = (functional.logsigmoid(wide(z, mask) / T) for z in (s, t.detach()))
    return T**2 * masked_mean(divergence(t_log, s_log), mask, count)


def biased(z: Tensor) -> Tensor:
    """z-scores by C, not C − 1."""
    return (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True, unbiased=False) + 1e-7)


def over_the_batch(z: Tensor) -> Tensor:
    return (z - z.mean(0)) / (z.std(0) + 1e-7)


def kl_of(transform: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda s, t, **k: kl(transform(s), transform(t), temperature=2.0, **k)


def rescaled(loss: Callable[..., Tensor], factor: float) -> Callable[..., Tensor]:
    return lambda s, t, **k: factor * loss(s, t, **k)


SPECIFIC: list[tuple[str, str, Callable[..., Tensor], str]] = [
    ("reverse_kl", "the forward one", of_rows(lambda s, t: divergence(t, s)), "value"),
    ("reverse_kl", "T² dropped", of_rows(lambda s, t: divergence(s, t), 1.0), "value"),
    ("reverse_kl", "the wrong sign", of_rows(lambda s, t: divergence(s, t), -(T**2)), "equality"),
    ("reverse_kl", "student's entropy dropped", of_rows(lambda s, t: -(s.exp() * t).sum(-1)), "equality"),
    (
        "reverse_kl",
        "gradient of the weights stopped",
        of_rows(lambda s, t: (s.exp().detach() * (s - t)).sum(-1)),
        "gradient",
    ),
    ("jensen_shannon", "T² dropped, as in TRL", of_rows(shannon, 1.0), "value"),
    ("jensen_shannon", "β weighs the student", of_rows(lambda s, t: shannon(s, t, mixture=0.7, teacher=0.7)), "value"),
    ("jensen_shannon", "mixture the other way", of_rows(lambda s, t: shannon(s, t, mixture=0.7)), "value"),
    ("jensen_shannon", "parts not weighted", of_rows(lambda s, t: 0.5 * shannon(s, t, teacher=0.5)), "value"),
    ("skewed_kl", "cross-entropy, as in distillm", of_rows(cross_entropy_to_mixture), "equality"),
    ("skewed_kl", "skew weighs the student", of_rows(lambda s, t: divergence(t, mixed(s, t, 0.2))), "value"),
    (
        "skewed_kl",
        "T² dropped",
        rescaled(lambda s, t, **k: skewed_kl(s, t, skew=0.2, temperature=T, **k), T**-2),
        "value",
    ),
    ("skewed_reverse_kl", "student detached in the mixture", of_rows(student_detached_in_the_mixture), "gradient"),
    ("skewed_reverse_kl", "the forward one", of_rows(lambda s, t: divergence(t, mixed(t, s, 0.2))), "value"),
    ("skewed_reverse_kl", "skew weighs the teacher", of_rows(lambda s, t: divergence(s, mixed(t, s, 0.2))), "value"),
    ("dkd", "T² dropped", rescaled(lambda s, t, **k: dkd(s, t, temperature=T, **k), T**-2), "value"),
    ("dkd", "the student's answer the target", by_the_students_answer, "value"),
    ("dkd", "plain kl", lambda s, t, **k: kl(s, t, temperature=T, **k), "value"),
    (
        "dkd with labels",
        "weights swapped",
        labelled(dkd, target_weight=3.0, other_weight=2.0, temperature=T),
        "value",
    ),
    (
        "dkd with labels",
        "labels not used",
        lambda s, t, **k: dkd(s, t, target_weight=2.0, other_weight=3.0, temperature=T, **k),
        "value",
    ),
    ("nkd", "others not normalised", others_in_their_share, "value"),
    ("nkd", "temperature on the target as well", lambda s, t, **k: T**2 * nkd(s / T, t / T, **k), "value"),
    ("nkd", "T² dropped", lambda s, t, **k: nkd(s, t, other_weight=1.5 / T**2, temperature=T, **k), "value"),
    ("nkd with labels", "labels not used", lambda s, t, **k: nkd(s, t, other_weight=2.0, temperature=T, **k), "value"),
    ("dist", "no temperature, as for segmentation", dist, "value"),
    ("dist", "T² dropped", rescaled(lambda s, t, **k: dist(s, t, temperature=T, **k), T**-2), "value"),
    ("dist", "between classes alone", lambda s, t, **k: dist(s, t, intra=0.0, temperature=T, **k), "value"),
    ("dist", "cosine in place of correlation", cosines, "value"),
    ("dist", "logits in place of probabilities", of_raw_logits, "value"),
    ("dist", "masked rows are zeros", masked_rows_as_zeros, "value"),
    ("dist", "part within classes without count", intra_without_count, "count"),
    ("dist, weighted", "weights swapped", lambda s, t, **k: dist(s, t, inter=2.0, intra=0.5, **k), "value"),
    ("binary_kl", "only where the answer is yes", only_yes, "equality"),
    ("binary_kl", "softmax over the outputs", lambda s, t, **k: kl(s, t, temperature=T, **k), "value"),
    (
        "regression",
        "mean over outputs",
        lambda s, t, mask=None, count=None: masked_mean(
            (wide(s, mask) - wide(t.detach(), mask)).square().mean(-1), mask, count
        ),
        "value",
    ),
    (
        "regression",
        "not squared",
        lambda s, t, mask=None, count=None: masked_mean(
            (wide(s, mask) - wide(t.detach(), mask)).abs().sum(-1), mask, count
        ),
        "value",
    ),
    ("kl of standardized logits", "population deviation", kl_of(biased), "value"),
    ("kl of standardized logits", "over samples", kl_of(over_the_batch), "value"),
    ("kl of standardized logits", "not standardized", kl_of(lambda z: z), "value"),
]
"""(case, what is wrong, the mutant, the check that must fail)."""
