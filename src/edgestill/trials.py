"""Short distillations of a search's candidates: all of a rung with the same steps, seed and batches."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any

from edgestill import stores
from edgestill.arms import difficulty, train_short
from edgestill.assemble import Job, assemble, check_served, check_taps, description_of
from edgestill.errors import UserError
from edgestill.plan.front import Tried, fell_out, front
from edgestill.plan.halving import Rung, affordable, halving, rungs, seconds_of
from edgestill.plan.proposing import Traits, proposed
from edgestill.progress import silent
from edgestill.recipe import Recipe
from edgestill.train import Track
from edgestill.units import format_seconds, parse_seconds

SEED = 0
LEAST_STEPS = 50
"""Of a training that tells candidates apart."""
STORE = "store"
Result = dict[str, Any]
_log = logging.getLogger("edgestill")


@dataclass(frozen=True)
class Trials:
    """The candidates that fit, in what they are trained with.

    `found`: what result.json holds as `search`, which grows; `save` writes it. `spent`: seconds of the search before.
    """

    job: Job
    recipe: Recipe
    recipes: Mapping[str, Recipe]
    fitting: Mapping[str, Result]
    place: Path
    found: Result
    save: Callable[[], None]
    track: Track
    assembly: float
    """Seconds that it takes to put a candidate's parts together."""

    def choose(self) -> str:
        """The name of the best candidate. UserError where time does not allow for two, or where none could be
        trained."""
        if len(self.fitting) == 1:  # nothing to choose from
            (name,) = self.fitting
            self.fitting[name]["front"] = True
            _log.warning("edgestill: of %d candidates %s alone fits the budget", len(self.found["candidates"]), name)
            return name
        store = self._store()
        plan = self._plan(store)
        self._capture(store)
        started = perf_counter() - self.found["seconds"].get("trials", 0.0)

        def train(name: str, number: int) -> float | None:
            quality = self._quality(name, number, plan[number], store)
            self.found["seconds"]["trials"] = perf_counter() - started
            self.save()
            return quality

        chosen = halving(plan, self._entrants(plan[0].entrants), train, self._better, self._time_for(plan, store))
        if chosen is None:
            name, first = next(iter(self.fitting.items()))
            raise UserError(f"student.search: no candidate could be trained; {name}: {first['why']}")
        self._tell(chosen, plan)
        return chosen

    def _tell(self, chosen: str, plan: list[Rung]) -> None:
        """Which candidates are on the front, and why each of the others fell out."""
        higher, name_of = self.job.metric.higher_is_better, self.job.metric.name
        qualities = {
            name: tuple(one["quality"] for one in candidate["rungs"])
            for name, candidate in self.fitting.items()
            if "rungs" in candidate
        }
        costs = {name: tuple(one["value"] for one in self.fitting[name]["judged"].values()) for name in qualities}
        tried = {name: Tried(costs[name], qualities[name]) for name in qualities}
        for name in front(tried, higher_is_better=higher):
            self.fitting[name]["front"] = True
        out = fell_out(qualities, chosen, higher_is_better=higher)
        for name, candidate in self.fitting.items():
            if name in out:
                rung, own, other = out[name]
                whose = "the chosen one" if rung == len(plan) - 1 else "the last that went on"
                also = ", which costs less" if own == other else ""
                why = f"{name_of} {own:.4f} behind {plan[rung].share:.1%} of the training, {whose} {other:.4f}{also}"
                candidate.setdefault("why", why)
            elif name != chosen:
                candidate.setdefault("why", f"not tried: compute.time is {self.recipe.compute.time}")

    def _store(self) -> Recipe | None:
        """The recipe of the store that the trials read: the user's own, or one of the search; None where the teacher is
        asked, with the reason."""
        fitting = [self.recipes[name] for name in self.fitting]
        first = fitting[0]
        if first.teacher.store is not None:
            return first
        search = self.recipe.student.search
        assert search is not None
        views = max(self.recipe.capture.views, ceil(self.recipe.train.epochs * search.last_rung))
        asked = first.model_copy(update={"capture": first.capture.model_copy(update={"views": views})})
        try:
            job = replace(self.job, recipe=asked)
            description = description_of(job)
            for recipe in fitting:
                check_served(recipe, description.codec, "the search's store")
            for recipe in fitting:
                if recipe.distill.terms or any(phase.terms for phase in recipe.phases):  # each maps its own layers
                    own = assemble(recipe, silent, splits=self.job.splits)
                    check_taps(own, description.taps, "the search's store keeps")
            stores.refuse_full_disk(self.place / STORE, job, description)
        except UserError as error:
            if self.found.get("online") != str(error):
                _log.warning("edgestill: the search asks the teacher in every step, not a store: %s", error)
            self.found["online"] = str(error)
            return None
        return asked

    def _capture(self, store: Recipe | None) -> None:
        if store is None or store.teacher.store is not None or "capture" in self.found["seconds"]:
            return
        started = perf_counter()
        stores.capture(store, self.place / STORE, track=self.track)
        self.found["seconds"]["capture"] = perf_counter() - started
        self.save()

    def _plan(self, store: Recipe | None) -> list[Rung]:
        """The rungs, with as many candidates as time allows for; what they are going to take is said."""
        names = [*self.fitting]
        if "rungs" not in self.found:
            capture = self._capture_seconds(store)

            def seconds(name: str, share: float) -> float:
                return self._seconds(name, share, store)

            plan = self._rungs(self._affordable(seconds, capture))
            self.found["rungs"] = [{"entrants": one.entrants, "share": one.share} for one in plan]
            self.found["estimated_seconds"] = capture + seconds_of(plan, names, seconds)
            self.save()
        plan = [Rung(one["entrants"], one["share"]) for one in self.found["rungs"]]
        said = ", ".join(f"{one.entrants} for {one.share:.1%} of the training" for one in plan)
        _log.warning(
            "edgestill: %d of %d candidates fit the budget; trained are %s: about %s",
            len(names), len(self.found["candidates"]), said, format_seconds(self.found["estimated_seconds"]),
        )  # fmt: skip
        return plan

    def _rungs(self, count: int) -> list[Rung]:
        search, train = self.recipe.student.search, self.recipe.train
        assert search is not None
        steps = train.epochs * len(self.job.splits.train.labels) / train.batch_size
        return rungs(count, search.last_rung, search.reduction, max(search.first_rung, LEAST_STEPS / steps))

    def _affordable(self, seconds: Callable[[str, float], float], capture: float) -> int:
        """How many candidates time allows for, that of measuring and of the store taken off."""
        time, names = self.recipe.compute.time, [*self.fitting]
        if time is None:
            return len(names)
        spent = self.found["seconds"]["costs"]
        if count := affordable(self._rungs, names, seconds, parse_seconds(time) - spent - capture):
            return count
        fastest = sorted(names, key=lambda name: seconds(name, 1.0))[:2]
        raise UserError(
            f"compute.time: {time} is too short: measuring files took {format_seconds(spent)}, the teacher's store "
            f"takes about {format_seconds(capture)}, and the short training of the two fastest candidates "
            f"{format_seconds(seconds_of(self._rungs(2), fastest, seconds))}: raise it, or lower train.epochs or "
            "student.search.last_rung"
        )

    def _capture_seconds(self, store: Recipe | None) -> float:
        if store is None or store.teacher.store is not None:
            return 0.0
        return float(stores.plan(store, track=silent)["seconds"])

    def _seconds(self, name: str, share: float, store: Recipe | None) -> float:
        """About what a candidate's training for a share takes."""
        of, train, splits = self.fitting[name], self.recipe.train, self.job.splits
        steps = max(1, train.epochs * share * len(splits.train.labels) / train.batch_size)
        taught = 0.0 if store is not None else self.found["teacher_seconds"]
        checks = min(25.0, max(1.0, train.epochs * share)) * len(splits.validation.labels) / train.batch_size
        return float(self.assembly + steps * (of["step_seconds"] + taught) + checks * of["forward_seconds"])

    def _entrants(self, count: int) -> Callable[[Mapping[str, float]], Iterator[str]]:
        traits = {
            name: Traits(one["parameters"], one["flops"], one.get("technique", ""))
            for name, one in self.fitting.items()
        }
        higher = self.job.metric.higher_is_better
        return lambda found: proposed(traits, count, found, higher_is_better=higher)

    def _better(self, name: str, quality: float) -> tuple[float, ...]:
        """The better quality first, of equals the smaller file."""
        file = self.fitting[name]["judged"]
        return (-quality if self.job.metric.higher_is_better else quality, *(one["value"] for one in file.values()))

    def _time_for(self, plan: list[Rung], store: Recipe | None) -> Callable[[str, int], bool]:
        limit = self.recipe.compute.time

        def enough(name: str, number: int) -> bool:
            if limit is None or self._known(name, number) is not None:
                return True
            used = sum(self.found["seconds"].values())
            return bool(used + self._seconds(name, plan[number].share, store) <= parse_seconds(limit))

        return enough

    def _known(self, name: str, number: int) -> Result | None:
        """What a candidate came to in a rung, where it was trained."""
        return next((one for one in self.fitting[name].get("rungs", ()) if one["rung"] == number), None)

    def _quality(self, name: str, number: int, rung: Rung, store: Recipe | None) -> float | None:
        """A candidate's quality on validation behind a rung's training; what it was is known when going on."""
        candidate = self.fitting[name]
        if (known := self._known(name, number)) is not None:
            return float(known["quality"])
        if "why" in candidate:  # failed before
            return None
        started, own = perf_counter(), self.place / f"rung-{number + 1}" / name
        try:
            job = assemble(self._short(name, rung.share, store), silent, splits=self.job.splits)
            ranks = difficulty(job, silent)

            def track(items: Any, _: str, total: int) -> Any:
                return self.track(items, f"rung {number + 1}: {name}", total)

            trained = train_short(job, SEED, ranks, own, track, resume=True)
        except UserError as error:
            candidate["why"] = f"cannot be trained: {error}"
            return None
        candidate.setdefault("rungs", []).append(
            {
                "rung": number,
                "share": rung.share,
                "steps": sum(trained.steps.values()),
                "quality": trained.validation,
                "seconds": perf_counter() - started,
            }
        )
        candidate["quality"] = trained.validation
        shutil.rmtree(own, ignore_errors=True)
        return trained.validation

    def _short(self, name: str, share: float, store: Recipe | None) -> Recipe:
        """A candidate's recipe for a share of its training, from the store."""
        recipe = self.recipes[name]
        train = recipe.train.model_copy(update={"epochs": recipe.train.epochs * share})
        teacher = recipe.teacher
        if store is not None and teacher.store is None:
            teacher = teacher.model_copy(update={"store": str(self.place.absolute() / STORE)})
        return recipe.model_copy(update={"train": train, "teacher": teacher})
