"""The command line: verbs as plain functions. Nothing heavy is imported before a verb needs it."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgestill.errors import UserError
from edgestill.processes import alone, leave, met_by_all, tells

OK, MISTAKE, MISSED, INTERRUPTED = 0, 2, 3, 130


def main(arguments: list[str] | None = None) -> int:
    """Runs a verb. Exit codes: 0 done, 2 the user's mistake, 3 done but the budget is not met, 130 interrupted."""
    return leave(_done(_parser().parse_args(arguments)))


def _done(options: argparse.Namespace) -> int:
    """Runs the verb that was asked for; its exit code."""
    try:
        if options.verb not in (_run, _train, _capture):
            alone()
        code: int = options.verb(options)
    except UserError as error:
        if tells(error):
            print(f"edgestill: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt as error:
        where = getattr(options, "out", None)
        resume = " --resume" if hasattr(options, "resume") else ""
        hint = f"; the same command with --out {where}{resume} goes on" if where else ""
        if tells(error):
            print(f"edgestill: interrupted{hint}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as in `edgestill schema | head`
        sys.stderr.close()
        return OK
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgestill",
        description="Distil a large model into one that runs on an edge device, and prove what was kept.",
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def add(name: str, verb: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(verb=verb)
        return added

    for name, verb, text in (
        ("run", _run, "the whole job: train the arms, export, verify, evaluate, bench, report"),
        ("train", _train, "the trainings of a run alone: teacher, baseline and student"),
    ):
        sub = add(name, verb, text)
        _recipe(sub)
        sub.add_argument("--out", metavar="DIR", help="the run folder (runs/ and the time by default)")
        sub.add_argument("--resume", action="store_true", help="go on with an interrupted run in --out")
        _output(sub)
    _init_arguments(
        add("init", _init, "writes a recipe for a teacher, data and a budget, with a reason for each choice")
    )
    sub = add("capture", _capture, "what a recipe's teacher says of its training data, once, for `teacher.store`")
    _recipe(sub)
    sub.add_argument("--out", metavar="DIR", required=True, help="the store; one that is there is gone on with")
    sub.add_argument("--quiet", action="store_true", help="nothing but the result")
    sub = add("plan", _plan, "of a student.search the best within the budget; else what a capture is going to cost")
    _recipe(sub)
    sub.add_argument("--out", metavar="DIR", help="a search's folder; `run … --resume` then trains the chosen")
    sub.add_argument("--resume", action="store_true", help="go on with an interrupted plan in --out")
    _output(sub)
    sub = add("paper", _paper, "a whole job on paper: parameters, operations, memory, stores and hours of large models")
    sub.add_argument("job", metavar="JOB", help="a YAML file, or 8b-1b or 70b-3b")
    sub.add_argument("--set", metavar="K=V", action="append", default=[], dest="overrides", help="set a key of the job")
    _output(sub)
    store = add("store", _store, "verify: reads every byte of a store, and names what is damaged")
    store.add_argument("step", choices=("verify",))
    store.add_argument("store", metavar="DIR", type=Path, help="a store")
    for name, again, text in (
        ("export", _export, "export and verify the student of a run again"),
        ("evaluate", _evaluate, "score the artifacts of a run on its test set, and ask all its models for its skills"),
        ("bench", _bench, "measure the artifacts of a run and its teacher again, here or on another host"),
        ("report", _report, "write report.html of a run again"),
    ):
        sub = add(name, again, text)
        sub.add_argument("run", metavar="RUN", type=Path, help="a run folder")
        if again is _bench:
            sub.add_argument("--host", metavar="USER@HOST", help="over SSH; or qemu-aarch64 (the recipe's bench.host)")
            sub.add_argument("--python", metavar="FILE", help="the interpreter there (the recipe's bench.python)")
        if again is _export:
            sub.add_argument(
                "--set", metavar="K=V", action="append", default=[], dest="overrides",
                help="set a key of export, verify, quantize, bench or budget",
            )  # fmt: skip
        if again is _evaluate:
            sub.add_argument(
                "--set",
                metavar="K=V",
                action="append",
                default=[],
                dest="overrides",
                help="set a key of skills or budget",
            )
        if again is not _report:
            _output(sub)
    compare = add("compare", _compare, "several runs side by side")
    compare.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folders")
    compare.add_argument("--json", action="store_true", help="print the results as JSON")
    taps = add("taps", _taps, "the places of a model that can be tapped: its stages, blocks and attentions")
    taps.add_argument("model", metavar="MODEL", help="file.py:function, timm:NAME, hf:FOLDER-OR-ID, or a saved folder")
    taps.add_argument(
        "--weights", metavar="FILE", help="safetensors or a state dict (none are needed to list the taps)"
    )
    taps.add_argument("--input", metavar="CxHxW", help="the images (what the model declares, or 3x224x224)")
    taps.add_argument("--classes", metavar="N", type=int, default=10, help="the classes it is built for (10)")
    taps.add_argument("--all", action="store_true", help="every module that puts out a tensor")
    taps.add_argument("--json", action="store_true", help="print the taps as JSON")
    losses = add("losses", _losses, "the losses, each measured on a standard pair of models")
    losses.add_argument("--json", action="store_true", help="print the losses as JSON")
    add("recipes", _recipes, "the built-in recipes")
    add("schema", _schema, "the recipe's JSON Schema")
    return parser


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("teacher", metavar="TEACHER", help="file.py:function, timm:NAME, hf:FOLDER-OR-ID, or a folder")
    parser.add_argument("data", metavar="DATA", help="what has the splits: a folder, a Hub id or file.py:function")
    parser.add_argument(
        "--budget", metavar="LIMITS", required=True, help='as in "size=120 KB, latency=2 ms, runtime=onnxruntime"'
    )
    parser.add_argument("--weights", metavar="FILE", help="the teacher's: safetensors or a state dict")
    parser.add_argument("--task", metavar="NAME", help="as in a recipe (told from the data by default)")
    parser.add_argument("--out", metavar="FILE", default="recipe.yaml", help="the recipe (recipe.yaml)")
    parser.add_argument("--quiet", action="store_true", help="nothing but the result")


def _recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a built-in recipe")
    parser.add_argument("--set", metavar="K=V", action="append", default=[], dest="overrides", help="set a recipe key")


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="nothing but the result")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _run(options: argparse.Namespace) -> int:
    return _do_run(options, deliver=True)


def _train(options: argparse.Namespace) -> int:
    return _do_run(options, deliver=False)


def _do_run(options: argparse.Namespace, deliver: bool) -> int:
    from edgestill.recipe import STEP, load_recipes

    with met_by_all():
        recipes = load_recipes(options.recipe, options.overrides)
    from edgestill.folder import fresh
    from edgestill.runs import run
    from edgestill.several import run_students
    from edgestill.steps import run_steps

    if options.resume and not options.out:
        raise UserError("--resume needs --out, the folder of the run to go on with")
    options.out = options.out or fresh()

    given = {"resume": options.resume, "track": _track(options), "deliver_files": deliver}
    if "" in recipes and recipes[""].student.search is not None:
        from edgestill.planner import search

        result = search(recipes[""], options.out, **given)
    elif "" in recipes:
        result = run(recipes[""], options.out, **given)
    else:
        result = (run_steps if STEP.format(1) in recipes else run_students)(recipes, options.out, **given)
    return _show(result, options) if result else OK  # process 0 of several shows it


def _init(options: argparse.Namespace) -> int:
    from edgestill.init import init, lines

    written = init(
        options.teacher, options.data, options.budget,
        weights=options.weights, task=options.task, out=options.out, track=_track(options),
    )  # fmt: skip
    print("\n".join(lines(written)))
    return OK


def _capture(options: argparse.Namespace) -> int:
    from edgestill.recipe import load_recipes

    with met_by_all():
        recipe = next(iter(load_recipes(options.recipe, options.overrides).values()))  # students have one teacher
    from edgestill.stores import capture

    found = capture(recipe, options.out, track=_track(options))
    if found is not None:  # process 0 of several shows it
        print(f"{options.out}: {found.made} shards captured, {found.kept} were there; {found.asked:,} rows asked")
    return OK


def _plan(options: argparse.Namespace) -> int:
    from edgestill.recipe import load_recipes

    recipe = next(iter(load_recipes(options.recipe, options.overrides).values()))
    if recipe.student.search is not None:
        return _search(recipe, options)
    if options.out or options.resume:
        raise UserError("--out and --resume: of a recipe with student.search, whose plan is a folder")
    from edgestill.stores import plan
    from edgestill.words import planned

    found = plan(recipe, track=_track(options))
    print(json.dumps(found, indent=1) if options.json else planned(found))
    return OK


def _search(recipe: Any, options: argparse.Namespace) -> int:
    """The plan of a search: its candidates, measured and compared, and which of them to train."""
    from edgestill.folder import fresh
    from edgestill.planner import search

    if options.resume and not options.out:
        raise UserError("--resume needs --out, the folder of the plan to go on with")
    options.out = options.out or fresh()
    return _show(search(recipe, options.out, resume=options.resume, track=_track(options), train=False), options)


def _paper(options: argparse.Namespace) -> int:
    from edgestill.recipe.paper import load_paper

    job = load_paper(options.job, options.overrides)
    from edgestill.paper import lines, on_paper

    found = on_paper(job)
    print(json.dumps(found, indent=1) if options.json else "\n".join(lines(found)))
    return OK


def _store(options: argparse.Namespace) -> int:
    from edgestill.stores import verify

    store, damaged = verify(options.store)
    if damaged:
        raise UserError(
            f"{options.store} is damaged in {'; '.join(damaged)}: `edgestill capture` into it captures that again"
        )
    print(f"{options.store}: {store.description.total:,} rows in {len(store.pieces)} shards are as they were written")
    return OK


def _on_folder(step: str, *names: str) -> Callable[[argparse.Namespace], int]:
    def verb(options: argparse.Namespace) -> int:
        from edgestill import runs

        given = {name: getattr(options, name) for name in names}
        return _show(getattr(runs, step)(options.run, track=_track(options), **given), options)

    return verb


_export, _evaluate, _bench = (
    _on_folder("export_again", "overrides"),
    _on_folder("evaluate_again", "overrides"),
    _on_folder("bench_again", "host", "python"),
)


def _report(options: argparse.Namespace) -> int:
    from edgestill import report

    print(report.write(options.run))
    return OK


def _compare(options: argparse.Namespace) -> int:
    from edgestill.folder import RESULT, read_json
    from edgestill.words import comparison

    results = {str(run): read_json(run / RESULT) for run in options.runs}
    print(json.dumps(results, indent=1) if options.json else comparison(results))
    return OK


def _taps(options: argparse.Namespace) -> int:
    sides = _sides(options.input) if options.input else None
    if options.classes < 1:
        raise UserError(f"--classes must be at least 1; {options.classes} came")
    from edgestill.listing import lines, taps_of

    taps = taps_of(options.model, classes=options.classes, sides=sides, weights=options.weights, every=options.all)
    print(json.dumps(taps, indent=1) if options.json else "\n".join(lines(taps)))
    return OK


def _losses(options: argparse.Namespace) -> int:
    from edgestill.catalogue import lines, measured

    rows = measured()
    print(json.dumps(rows, indent=1) if options.json else "\n".join(lines(rows)))
    return OK


def _sides(text: str) -> tuple[int, int, int]:
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) != 3 or not all(side.isdecimal() and int(side) for side in sides):
        raise UserError(f"--input is written CxHxW, as 3x224x224; {text!r} came")
    channels, height, width = map(int, sides)
    return channels, height, width


def _recipes(options: argparse.Namespace) -> int:
    from edgestill.reading import builtin

    for name, path in builtin().items():
        lines = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        print(f"{name:<18} {' '.join(lines)}")
    return OK


def _schema(options: argparse.Namespace) -> int:
    from edgestill.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=1))
    return OK


def _track(options: argparse.Namespace) -> Any:
    import logging

    from edgestill import progress

    if options.quiet:
        logging.getLogger("edgestill").setLevel(logging.ERROR)
    return progress.silent if options.quiet else progress.track


def _show(result: dict[str, Any], options: argparse.Namespace) -> int:
    from edgestill.words import searched, steps, students, summary

    if options.json:
        print(json.dumps(result, indent=1))
    else:
        if "search" in result:
            print("\n".join(searched(result)))
        if "students" in result:
            print(students(result))
        elif "steps" in result:
            print("\n".join(steps(result)))
        elif "arms" in result:
            print("\n".join(summary(result)))
        if "report" in result:
            print(f"report   {result['report']}")
    return OK if result.get("budget", {"met": True})["met"] else MISSED


if __name__ == "__main__":
    sys.exit(main())
