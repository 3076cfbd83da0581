"""Wrong forms of the losses over relations, scales and attention, most of them from known software, each with the
check that must fail for it. A form is `wrong(student, teacher, mask=…, count=…)`; some see no mask, as what is wrong
with them shows without.

Shapes: B batch, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from edgestill.losses import attention_kl, cc, cka, cwd, noise_contrast, nst, pkt, pyramid, rkd, sp
from loss_cases_relations import CONTRAST, NEGATIVES


def grams(student: Tensor, teacher: Tensor) -> list[Tensor]:
    return [features.flatten(1) @ features.flatten(1).T for features in (student, teacher.detach())]


def sp_over_the_whole_matrix(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    first, second = (gram / gram.norm() for gram in grams(student, teacher))
    return (first - second).square().mean()


def sp_with_rows_of_sum_one(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    """torchdistill."""
    first, second = (functional.normalize(gram, p=1, dim=1) for gram in grams(student, teacher))
    return (first - second).square().mean()


def sp_of_unit_features(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    first, second = grams(*(functional.normalize(features.flatten(1)) for features in (student, teacher)))
    return (first - second).square().mean()


def sp_summed_over_the_others(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return len(student) * sp(student, teacher, **options)


def distances(points: Tensor) -> Tensor:
    squared = (points[None] - points[:, None]).square().sum(2)
    return torch.where(squared > 0, squared, 1).sqrt() * (squared > 0)


def rkd_over_all_pairs(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    """The authors' code."""
    return rkd(student, teacher, angle=0, **options) * (len(student) - 1) / len(student)


def rkd_over_all_triples(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    """The authors' code."""
    B = len(student)
    return rkd(student, teacher, distance=0, angle=1, **options) * (B - 1) * (B - 2) / B**2


def rkd_of_unit_embeddings(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    """mmrazor."""
    return rkd(functional.normalize(student), functional.normalize(teacher), angle=0, **options)


def rkd_of_distances_as_they_are(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    B = len(student)
    huber = functional.smooth_l1_loss(distances(student), distances(teacher.detach()), reduction="sum")
    return 25 * huber / (B * (B - 1))


def rkd_over_the_mean_with_the_diagonal(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    B = len(student)
    first, second = (lengths / lengths.mean() for lengths in (distances(student), distances(teacher.detach())))
    return 25 * functional.smooth_l1_loss(first, second, reduction="sum") / (B * (B - 1))


def rkd_squared(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    B = len(student)
    first, second = (d * B * (B - 1) / d.sum() for d in (distances(student), distances(teacher.detach())))
    return 25 * (first - second).square().sum() / 2 / (B * (B - 1))


def rkd_of_cosines_from_zero(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    """The angle between two samples, seen from the origin instead of from a third sample."""
    first, second = grams(*(functional.normalize(features) for features in (student, teacher)))
    return functional.smooth_l1_loss(first, second)


def rkd_with_its_weights_swapped(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return rkd(student, teacher, distance=50, angle=25, **options)


def neighbours(features: Tensor) -> Tensor:
    return (functional.normalize(features) @ functional.normalize(features).T + 1) / 2


def pkt_with_itself(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    """The authors' code, apart from its mean over j."""
    q, p = (functional.normalize(neighbours(features), p=1, dim=1) for features in (student, teacher.detach()))
    return (p * (p / q).log()).sum(1).mean()


def pkt_over_pairs(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    """Averaged over j as well, as the authors' code."""
    return pkt(student, teacher, **options) / len(student)


def pkt_summed(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return pkt(student, teacher, **options) * len(student)


def pkt_backwards(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return pkt(teacher.detach(), student, **options) + 0 * pkt(student, teacher, **options)


def pkt_by_softmax(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    other = ~torch.eye(len(student), dtype=torch.bool)
    rows = [neighbours(f)[other].reshape(len(f), -1).log_softmax(1) for f in (student, teacher.detach())]
    return (rows[1].exp() * (rows[1] - rows[0])).sum(1).mean()


def cc_without_its_factor(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    """e^(−2γ) dropped."""
    return cc(student, teacher, **options) * torch.e**1.6


def cc_of_raw_features(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    first, second = (sum(0.8**p / p * gram**p for p in (1, 2)) for gram in grams(student, teacher))
    return torch.e**-1.6 * (first - second).square().mean()


def cc_without_factorials(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    units = (functional.normalize(features) for features in (student, teacher))
    first, second = (sum(0.8**p * gram**p for p in (1, 2)) for gram in grams(*units))
    return torch.e**-1.6 * (first - second).square().mean()


def cc_one_order_short(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return cc(student, teacher, order=1, **options)


def cka_not_centred(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    first, second = grams(student, teacher)
    return 1 - (first * second).sum() / first.norm() / second.norm()


def cka_centred_over_features(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    return cka_not_centred(*(f.flatten(1) - f.flatten(1).mean(1, keepdim=True) for f in (student, teacher)))


def cka_itself(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return 1 - cka(student, teacher, **options)


def cka_of_norms_squared(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return 1 - (1 - cka(student, teacher, **options)).square()


def pyramid_not_divided(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return pyramid(student, teacher, **options) * (1 + 1 / 2 + 1 / 4 + 1 / 8)


def pyramid_of_equal_weights(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    scales = [functional.adaptive_avg_pool2d(student - teacher.detach(), side) for side in (8, 4, 2, 1)]
    return sum(scale.square().mean() for scale in scales) / 4


def pyramid_of_largest_values(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    sides, weights = (8, 4, 2, 1), (1, 1 / 2, 1 / 4, 1 / 8)
    first, second = ([functional.adaptive_max_pool2d(f, side) for side in sides] for f in (student, teacher.detach()))
    terms = (w * (s - t).square().mean() for w, s, t in zip(weights, first, second, strict=True))
    return sum(terms) / sum(weights)


def attention_kl_backwards(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return attention_kl(teacher.detach(), student, **options) + 0 * student.sum()


def attention_kl_summed_over_queries(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return attention_kl(student, teacher, **options) * student.shape[2]


def attention_kl_over_keys_too(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return attention_kl(student, teacher, **options) / student.shape[3]


def attention_squared(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    """TinyBERT."""
    return (student - teacher.detach()).square().mean()


def attention_kl_of_the_first_heads(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return attention_kl(student, teacher[:, : student.shape[1]], **options)


def contrast_of_softmax(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    """InfoNCE."""
    scores = torch.cat([(student * teacher.detach()).sum(1, keepdim=True), student @ NEGATIVES.T], 1) / 3
    return -scores.log_softmax(1)[:, 0].mean()


def contrast_over_the_negatives(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return noise_contrast(student, teacher.detach(), NEGATIVES, **CONTRAST, **options) / len(NEGATIVES)


def contrast_without_its_constant(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return noise_contrast(student, teacher.detach(), NEGATIVES, temperature=3.0, population=len(NEGATIVES), **options)


def nst_of_raw_channels(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    first, second = student.flatten(2), teacher.detach().flatten(2)
    means = [(x @ y.mT).square().mean() for x, y in ((first, first), (second, second), (first, second))]
    return means[0] + means[1] - 2 * means[2]


def nst_by_a_linear_kernel(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    first, second = (functional.normalize(features.flatten(2), dim=2) for features in (student, teacher.detach()))
    return (first.mean(1) - second.mean(1)).square().sum(1).mean()


def nst_without_the_teachers_part(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    unit = functional.normalize(teacher.detach().flatten(2), dim=2)
    return nst(student, teacher, **options) - (unit @ unit.mT).square().mean()


def cwd_over_channels(student: Tensor, teacher: Tensor, **_: object) -> Tensor:
    return cwd(student.permute(0, 2, 1, 3), teacher.permute(0, 2, 1, 3))


def cwd_without_its_temperature_squared(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return cwd(student, teacher, temperature=4.0, **options) / 16


def cwd_averaged_over_positions(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return cwd(student, teacher, **options) / student[0, 0].numel()


def cwd_summed_over_channels(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return cwd(student, teacher, **options) * student.shape[1]


def cwd_backwards(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    return cwd(teacher.detach(), student, **options) + 0 * student.sum()


SPECIFIC: tuple[tuple[str, Callable[..., Tensor], str], ...] = (
    ("sp", sp_over_the_whole_matrix, "value"),
    ("sp", sp_with_rows_of_sum_one, "value"),
    ("sp", sp_of_unit_features, "value"),
    ("sp", sp_summed_over_the_others, "value"),
    ("rkd, distances", rkd_over_all_pairs, "value"),
    ("rkd, angles", rkd_over_all_triples, "value"),
    ("rkd, distances", rkd_of_unit_embeddings, "value"),
    ("rkd, distances", rkd_of_distances_as_they_are, "value"),
    ("rkd, distances", rkd_over_the_mean_with_the_diagonal, "value"),
    ("rkd, distances", rkd_squared, "value"),
    ("rkd, angles", rkd_of_cosines_from_zero, "value"),
    ("rkd", rkd_with_its_weights_swapped, "value"),
    ("pkt", pkt_with_itself, "value"),
    ("pkt", pkt_over_pairs, "value"),
    ("pkt", pkt_summed, "value"),
    ("pkt", pkt_backwards, "value"),
    ("pkt", pkt_by_softmax, "value"),
    ("cc", cc_without_its_factor, "value"),
    ("cc", cc_of_raw_features, "value"),
    ("cc", cc_without_factorials, "value"),
    ("cc", cc_one_order_short, "value"),
    ("cka", cka_not_centred, "value"),
    ("cka", cka_centred_over_features, "value"),
    ("cka", cka_itself, "equality"),
    ("cka", cka_of_norms_squared, "value"),
    ("pyramid", pyramid_not_divided, "value"),
    ("pyramid", pyramid_of_equal_weights, "value"),
    ("pyramid", pyramid_of_largest_values, "value"),
    ("attention_kl", attention_kl_backwards, "value"),
    ("attention_kl", attention_kl_summed_over_queries, "value"),
    ("attention_kl", attention_kl_over_keys_too, "value"),
    ("attention_kl", attention_squared, "value"),
    ("attention_kl of other heads", attention_kl_of_the_first_heads, "value"),
    ("noise_contrast", contrast_of_softmax, "value"),
    ("noise_contrast", contrast_over_the_negatives, "value"),
    ("noise_contrast", contrast_without_its_constant, "value"),
    ("nst", nst_of_raw_channels, "value"),
    ("nst", nst_by_a_linear_kernel, "value"),
    ("nst", nst_without_the_teachers_part, "value"),
    ("cwd", cwd_over_channels, "value"),
    ("cwd, temperature 4", cwd_without_its_temperature_squared, "value"),
    ("cwd", cwd_averaged_over_positions, "value"),
    ("cwd", cwd_summed_over_channels, "value"),
    ("cwd", cwd_backwards, "value"),
)
