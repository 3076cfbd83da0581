"""A task of EleutherAI's lm-eval by its name, its data given locally, asked of any of our language models."""

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from edgestill.data.hub import quiet
from edgestill.errors import UserError, closest, first_line
from edgestill.evaluate.likelihood import continuations, whole
from edgestill.evaluate.metric import Track
from edgestill.evaluate.writing import LanguageModel, answers, prompt_ids, with_room

KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


def check(task: str, data: str, examples: str | None, shots: int, samples: int | None, measure: str | None) -> None:
    """UserError where lm-eval is not installed, has no such task or measure, or cannot ask it with these rows."""
    manager = _manager()
    names = [*manager.all_subtasks]
    if task not in names:
        raise UserError(f"lm-eval has no task {task!r}{closest(task, names)}; a group's tasks are named one by one")
    described = manager.task_index[task].yaml_path
    if described is None or "class" in _keys(described):
        raise UserError(f"lm-eval's task {task} reads its data by code of its own: take another, or a scorer of ours")
    for path in filter(None, (data, examples)):
        if Path(path).suffix not in KINDS:
            raise UserError(f"lm-eval's tasks take files of {', '.join(KINDS)}; {path} came")
    _of_samples(task, _evaluated(_silent(), task, data, examples, shots, samples), measure)


def _keys(path: Path) -> set[str]:
    """The keys of a task's description, and of those that it includes."""
    text = Path(path).read_text(encoding="utf-8")
    own = set(re.findall(r"^(\w+):", text, re.MULTILINE))
    included = re.search(r"^include:\s*(\S+)", text, re.MULTILINE)
    if included is None or not (other := Path(path).parent / included[1].strip("\"'")).is_file():
        return own
    return own | _keys(other)


def scores(
    model: LanguageModel,
    task: str,
    data: str,
    *,
    examples: str | None = None,
    shots: int = 0,
    samples: int | None = None,
    measure: str | None = None,
    tokens: int = 256,
    track: Track = lambda items, *_: items,
) -> tuple[Any, ...]:
    """The fields of `skills.Found`: each sample's score, how much it counts, what guessing would score (None of a
    measure of which less is better), nothing for what was asked, what was answered, and whether more is better. Of
    whole texts, a sample's score is its nats over its bytes or words.

    Args:
        data, examples: files whose rows have the columns of the task's own data set: what is asked, and what the
            `shots` that stand before each question are drawn from.
        samples: the first so many alone.
        measure: of the task's, such as acc_norm; its first one that is a mean of samples unless said.
        tokens: most tokens that are written, where the task sets no smaller number.
    """
    found = _evaluated(_asked(model, tokens, track), task, data, examples, shots, samples)
    return _of_samples(task, found, measure)


def _evaluated(asked: Any, task: str, data: str, examples: str | None, shots: int, samples: int | None) -> Any:
    """What lm-eval finds of a model as it asks one."""
    from lm_eval.evaluator import simple_evaluate

    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            quiet(f"lm-eval: the data of {data}"),
            _without_bars(),
            _without_git(),
        ):
            return simple_evaluate(
                model=asked,
                tasks=[str(_with_data(task, data, examples, Path(folder)))],
                num_fewshot=shots,
                limit=samples,
                bootstrap_iters=0,
                log_samples=True,
                task_manager=_manager(),
            )
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"lm-eval: {task} needs the column {error}, which {data} lacks") from error
    except Exception as error:
        raise UserError(f"lm-eval: {task} cannot be asked with the data of {data}: {first_line(error)}") from error


def _of_samples(task: str, found: dict[str, Any], measure: str | None) -> tuple[Any, ...]:
    """What `scores` gives, from what lm-eval keeps of each sample."""
    rows = found["samples"][task]
    rows = [row for row in rows if row["filter"] == rows[0]["filter"]]
    measures = [name for name in rows[0]["metrics"] if _of_single_samples(found["configs"][task], name, rows[0][name])]
    chosen = measure or (measures[0] if measures else None)
    if chosen is None or chosen not in measures:
        named = f"no measure {chosen!r}: it has {', '.join(measures)}" if measures else "none"
        raise UserError(f"lm-eval: of the measures of {task} that are means over samples there is {named}")
    shown = [_shown(row) for row in rows]
    if isinstance(rows[0][chosen], tuple | list):  # of whole texts: log p, and over how many bytes or words
        sums = np.asarray([row[chosen] for row in rows], np.float64)
        return -sums[:, 0] / np.maximum(sums[:, 1], 1), sums[:, 1], None, [], shown, False
    values, ones = np.asarray([float(row[chosen]) for row in rows]), np.ones(len(rows))
    higher = bool(found["higher_is_better"].get(task, {}).get(chosen, True))
    of_choices = found["configs"][task]["output_type"] == "multiple_choice" and chosen.startswith("acc")
    chance = float(np.mean([1 / len(row["arguments"]) for row in rows])) if of_choices else 0.0
    return values, ones, chance if higher else None, [], shown, higher


def _of_single_samples(config: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether a measure is the mean of numbers, or log p over bytes or words; not so an F1, or lambada's perplexity,
    less of which is better, while more is of its samples' log p."""
    from lm_eval.api.registry import get_metric_aggregation

    said = [one.get("aggregation") for one in config.get("metric_list") or () if one.get("metric") == name]
    how = next(iter(said), None) or get_metric_aggregation(name)
    how = getattr(how, "__name__", how)
    if isinstance(value, tuple | list):
        return how in ("weighted_perplexity", "bits_per_byte")
    return isinstance(value, int | float) and how in ("mean", None)


@contextmanager
def _without_git() -> Iterator[None]:
    """lm-eval notes the commit of the current folder, and git says on stderr where there is none."""
    from lm_eval import evaluator

    usual = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = usual


@contextmanager
def _without_bars() -> Iterator[None]:
    """lm-eval draws bars of its own, which it cannot be told to leave."""
    from tqdm import tqdm

    usual = tqdm.__init__
    tqdm.__init__ = partialmethod(usual, disable=True)
    try:
        yield
    finally:
        tqdm.__init__ = usual


def _with_data(task: str, data: str, examples: str | None, folder: Path) -> Path:
    """The task's own description, but for where its rows come from, as a file that lm-eval reads."""
    described = {
        "include": str(_manager().task_index[task].yaml_path),
        "task": task,
        "dataset_path": KINDS[Path(data).suffix],
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": data} | ({"train": examples} if examples else {})},
        "test_split": "test",
        "validation_split": None,
        "training_split": "train" if examples else None,
        "fewshot_split": "train" if examples else None,
    }
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(described), encoding="utf-8")
    return path


def _shown(row: dict[str, Any]) -> str:
    answered = row["filtered_resps"]
    return str(answered[0] if len(answered) == 1 else answered)


@cache
def _manager() -> Any:
    """lm-eval's tasks, of which it reads thousands of files."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"tasks of lm-eval need it: pip install 'edgestill[lm-eval]' ({first_line(error)})") from error
    _quiet()
    return TaskManager()


def _quiet() -> None:
    for name in ("lm_eval", "lm-eval"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _silent() -> Any:
    """A model that says nothing: whether a task can be asked is known before there is one."""
    from lm_eval.api.model import LM

    class Silent(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return [(0.0, False)] * len(requests)

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return [0.0] * len(requests)

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return [""] * len(requests)

    return Silent()


def _asked(model: LanguageModel, tokens: int, track: Track) -> Any:
    """Our language model as lm-eval asks one."""
    from lm_eval.api.model import LM

    class Asked(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            found, greedy = continuations(model, [request.args for request in requests], track, "asking")
            return list(zip(found.tolist(), greedy.tolist(), strict=True))

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            found: list[float] = whole(model, [request.args[0] for request in requests], track, "asking").tolist()
            return found

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            most = min(tokens, model.expected.length // 2)  # the other half is the prompt's
            asked = [_stops(request.args[1], most) for request in requests]
            replies = [""] * len(requests)
            for options in dict.fromkeys(asked):
                rows = [row for row, own in enumerate(asked) if own == options]
                prompts = [
                    with_room(prompt_ids(model.expected, requests[row].args[0]), model.expected, options[0])
                    for row in rows
                ]
                for row, reply in zip(rows, answers(model, prompts, *options, track, "writing"), strict=True):
                    replies[row] = reply
            return replies

    return Asked()


def _stops(options: dict[str, Any], tokens: int) -> tuple[int, tuple[str, ...]]:
    """The most tokens of a reply, and the texts before which it ends."""
    stops = options.get("until") or ()
    return min(int(options.get("max_gen_toks", tokens)), tokens), ((stops,) if isinstance(stops, str) else (*stops,))
