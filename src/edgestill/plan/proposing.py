"""Which of many candidates are tried, where time does not allow for all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log2

from edgestill.errors import UserError


@dataclass(frozen=True)
class Traits:
    """What is known of a candidate before it is trained, in which alike ones are near: sizes, and its technique."""

    parameters: int
    flops: int
    technique: str = ""

    @property
    def point(self) -> tuple[float, float]:
        return log2(max(self.parameters, 1)), log2(max(self.flops, 1))


def proposed(
    traits: Mapping[str, Traits], count: int, found: Mapping[str, float], *, higher_is_better: bool
) -> Iterator[str]:
    """`count` of the candidates: half of them spread evenly from the least operations to the most, the others where
    Optuna's tree-structured Parzen estimator expects the best, by parameters, operations and technique.

    `found`: the qualities that are known when the next candidate is asked for; it grows meanwhile.
    Raises UserError where Optuna is needed and not installed.

    >>> sizes = {"a": Traits(100, 10), "b": Traits(200, 20), "c": Traits(400, 40)}
    >>> [*proposed(sizes, 3, {}, higher_is_better=True)]
    ['a', 'b', 'c']
    """
    if count >= len(traits):
        yield from traits
        return
    ordered = sorted(traits, key=lambda name: (traits[name].point[1], name))
    spread = max(2, -(-count // 2))
    tried = [ordered[round(place * (len(ordered) - 1) / (spread - 1))] for place in range(min(spread, count))]
    yield from tried
    while len(tried) < count:
        name = _next(traits, tried, found, higher_is_better)
        tried.append(name)
        yield name


def _next(traits: Mapping[str, Traits], tried: Sequence[str], found: Mapping[str, float], higher: bool) -> str:
    """The untried candidate that is nearest to what Optuna asks for next."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            "student.search: choosing which candidates to try needs Optuna: pip install 'edgestill[search]', or give "
            "compute.time enough for all"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # one seed a candidate, so that going on asks for the same; with so few, the best quarter are the good ones
    sampler = optuna.samplers.TPESampler(
        seed=len(tried), n_startup_trials=1, n_ei_candidates=128, gamma=lambda count: -(-count // 4)
    )
    study = optuna.create_study(direction="maximize" if higher else "minimize", sampler=sampler)
    points = [one.point for one in traits.values()]
    low, high = (tuple(pick(point[axis] for point in points) for axis in (0, 1)) for pick in (min, max))
    techniques = sorted({one.technique for one in traits.values()})
    space: dict[str, optuna.distributions.BaseDistribution] = {
        axis: optuna.distributions.FloatDistribution(low[place], high[place] + 1e-9)
        for place, axis in enumerate(("parameters", "flops"))
    } | {"technique": optuna.distributions.CategoricalDistribution(techniques)}
    for name in tried:
        if name in found:
            parameters, flops = traits[name].point
            params = {"parameters": parameters, "flops": flops, "technique": traits[name].technique}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=found[name]))
    asked = study.ask(space).params

    def distance(name: str) -> tuple[float, str]:
        one = traits[name]
        apart = sum(
            ((value - asked[axis]) / max(high[place] - low[place], 1e-9)) ** 2
            for place, (axis, value) in enumerate(zip(("parameters", "flops"), one.point, strict=True))
        )
        return apart + (one.technique != asked["technique"]), name

    return min((name for name in traits if name not in tried), key=distance)
