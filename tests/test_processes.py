"""Several processes with their shares of a batch do what one does with the whole: real ones, over the loopback."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from edgestill.assemble import assemble
from edgestill.batchnorm import WholeBatchNorm
from edgestill.cli import MISTAKE, main
from edgestill.errors import UserError
from edgestill.processes import Processes, connect
from edgestill.progress import silent
from edgestill.recipe import load_recipe

NETS = '''
"""Everything in float64, where rounding cannot hide an error: what is left after 40 steps is 1e-12."""
import os, signal
import numpy as np, torch
from torch import nn

torch.set_default_dtype(torch.float64)
PRESS_AT = int(os.environ.get("PRESS_AT", "-1"))


class Press(nn.Module):
    """At a training step, Ctrl-C for the launcher."""
    steps = 0
    def forward(self, x):
        if self.training:
            Press.steps += 1
            if Press.steps == PRESS_AT and os.environ["RANK"] == "1":
                os.kill(os.getppid(), signal.SIGINT)
        return x


def splits():
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 3
    pixels = generator.integers(0, 100, (200, 8, 8), dtype=np.uint8)
    pixels[np.arange(200), 2 * labels] += 130
    return {"train": (pixels[:140], labels[:140]), "test": (pixels[140:], labels[140:])}


def network(num_classes, in_channels, width):
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), Press(),
        nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(width, momentum=None), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(4 * width, affine=False),
        nn.Linear(4 * width, num_classes),
    )


def student(num_classes, in_channels): return network(num_classes, in_channels, 4)
def teacher(num_classes, in_channels): return network(num_classes, in_channels, 8)
'''
RECIPE = {
    "task": "image-classification",
    "data": {"source": "nets.py:splits", "validation": 0.2, "labels_per_class": 9},
    "teacher": {"model": "nets.py:teacher", "fit": {"epochs": 5, "batch_size": 15, "lr": 0.05}},
    "student": {"model": "nets.py:student"},
    "distill": {"terms": [{"loss": "hint", "map": "width", "student": "5", "teacher": "5", "weight": 0.5}]},
    "phases": [
        {"name": "warmup", "share": 0.3, "order": "easiest-first"},
        {"name": "distill", "share": 0.4},
        {"name": "finetune", "share": 0.3, "alpha": 0.5, "terms": []},
    ],
    "train": {
        "epochs": 4,
        "batch_size": 11,
        "accumulate": 2,
        "ema": 0.9,
        "clip": 0.5,
        "keep": "best",
        "mixup": 0.4,
        "views": {"crop": 1, "flip": True},
        "device": "cpu",
        "threads": 1,
    },
    "compare": {"seeds": 1},
}


@pytest.fixture(autouse=True)
def _float32_stays_the_default():
    yield
    torch.set_default_dtype(torch.float32)  # the recipe's networks change it


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "nets.py").write_text(NETS)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder / "recipe.yaml"


def ended(*processes: subprocess.Popen) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each; one that hangs fails the test."""
    try:
        said = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def start(command: list[object], **environment: object) -> subprocess.Popen:
    own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | {key: str(value) for key, value in environment.items()}
    words = [sys.executable, *map(str, command)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=os.environ | own, stdout=pipe, stderr=pipe, text=True)


def together(command: list[object], count: int = 2, **environment: object) -> list[tuple[int, str, str]]:
    """What `count` processes end with that a launcher starts with one command."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launch = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return ended(*(start(command, RANK=i, LOCAL_RANK=i, **launch, **environment) for i in range(count)))


def torchrun(command: list[object], **environment: object) -> tuple[int, str, str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    return ended(start([*launcher, *command], **environment))[0]


def train(recipe: Path, out: Path, *options: str) -> list[object]:
    return ["-m", "edgestill", "train", recipe, "--out", out, "--quiet", *options]


def state(out: Path, arm: str) -> dict[str, Tensor]:
    saved = torch.load(out / "arms" / arm / "0" / "last.pt", weights_only=True)
    kept = torch.load(out / "arms" / arm / "0" / "best.pt", weights_only=True)
    aligners = {name: value for name, value in saved["objective"].items() if isinstance(value, torch.Tensor)}
    parts = {"student": saved["student"], "aligners": aligners, "average": saved["average"] or {}}
    parts["best"] = kept["student"]
    return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}


def numbers(out: Path) -> list[dict]:
    """The logged lines without their times, the parts beside the rest."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("parts", "examples_per_second")}
        | {f"{name}'s {key}": part[key] for name, part in line.get("parts", {}).items() for key in part}
        for line in lines
    ]


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory) -> Path:
    """A run of one process; beside it, whether that had imported accelerate by its end."""
    out = tmp_path_factory.mktemp("alone") / "run"
    words = [str(word) for word in train(recipe, out)[2:]]
    code = f"import sys; from edgestill.cli import main; print(main({words!r}), 'accelerate' in sys.modules)"
    [(code, output, errors)] = ended(start(["-c", code]))
    assert code == 0, errors
    (out.parent / "said").write_text(output.splitlines()[-1])
    return out


@pytest.fixture(scope="module")
def both(recipe, tmp_path_factory) -> Path:
    """A run of two processes, of which the second says nothing."""
    out = tmp_path_factory.mktemp("both") / "run"
    (code, output, errors), *other = together(train(recipe, out))
    assert code == 0, errors
    assert "kept" in output
    assert other == [(0, "", "")]
    return out


@pytest.mark.parametrize("arm", ["teacher", "baseline", "student"])
def test_two_processes_end_with_the_weights_of_one(alone, both, arm):
    """Uneven shares of pieces of batches, unlabelled samples, aligners, batch norms of three kinds, all phases."""
    one, two = state(alone, arm), state(both, arm)
    assert one.keys() == two.keys()
    assert any(name.startswith("aligners/") for name in one) == (arm == "student")
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_two_processes_log_and_conclude_what_one_does(alone, both):
    one, two = numbers(alone), numbers(both)
    assert len(one) == len(two) > 20
    for line, other in zip(one, two, strict=True):
        assert other.keys() == line.keys()
        for name, value in line.items():
            assert other[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value)
    results = [json.loads((out / "result.json").read_text()) for out in (alone, both)]
    assert results[0]["arms"] == results[1]["arms"]
    assert results[0]["phases"] == results[1]["phases"]
    environments = [json.loads((out / "environment.json").read_text()) for out in (alone, both)]
    assert [environment["processes"] for environment in environments] == [1, 2]


def test_two_processes_capture_one_store_and_train_from_it_as_one(recipe, tmp_path):
    sets = ["train.mixup=0", "distill.terms=[]", "teacher.fit.keep=true", "capture.batch=16", "capture.views=2"]
    words = [word for one in sets for word in ("--set", one)]
    stores = [tmp_path / "by-one", tmp_path / "by-two"]
    capture = ["-m", "edgestill", "capture", recipe, "--quiet", *words, "--out"]
    [(code, output, errors)] = ended(start([*capture, stores[0]], EDGESTILL_CACHE=tmp_path))
    shards = [f"shards/{path.name}" for path in (stores[0] / "shards").iterdir()]
    assert (code, f"{len(shards)} shards captured" in output) == (0, True), errors
    assert len(shards) > 10, "each process has its share of them"
    (code, output, errors), *other = together([*capture, stores[1]], EDGESTILL_CACHE=tmp_path)
    assert (code, f"{len(shards)} shards captured" in output) == (0, True), errors
    assert other == [(0, "", "")]
    for path in ("store.json", *shards):
        assert (stores[0] / path).read_bytes() == (stores[1] / path).read_bytes()
    options = [*words, "--set", f"teacher.store={stores[0]}", "--set", "compare.baseline=false"]
    [(code, _, errors)] = ended(start(train(recipe, tmp_path / "one", *options), EDGESTILL_CACHE=tmp_path))
    assert code == 0, errors
    ends = together(train(recipe, tmp_path / "two", *options), EDGESTILL_CACHE=tmp_path)
    assert [end[0] for end in ends] == [0, 0], ends
    assert not (tmp_path / "one" / "arms" / "teacher").exists(), "it was kept by the capture"
    one, two = state(tmp_path / "one", "student"), state(tmp_path / "two", "student")
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_ctrl_c_stops_all_at_one_step_and_resuming_ends_as_if_nothing_had_been(recipe, both, tmp_path):
    """The launcher passes the signal on to each process in its own moment."""
    code, _, errors = torchrun(train(recipe, tmp_path / "run"), PRESS_AT=190)  # in the student's arm
    assert code != 0
    assert len(re.findall("edgestill: interrupted", errors)) == 1, errors
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"
    saved = torch.load(tmp_path / "run" / "arms" / "student" / "0" / "last.pt", weights_only=True)
    assert 0 < saved["step"] < sum(phase["steps"] for phase in json.loads((both / "result.json").read_text())["phases"])
    ends = together(train(recipe, tmp_path / "run", "--resume"))
    assert [code for code, _, _ in ends] == [0, 0], ends
    one, two = state(both, "student"), state(tmp_path / "run", "student")
    assert all(torch.equal(two[name], value) for name, value in one.items())


def test_a_run_is_resumed_with_as_many_processes(recipe, both, capfd):
    assert main([str(word) for word in train(recipe, both, "--resume")[2:]]) == MISTAKE
    assert "the number of processes was 2, 1 came" in capfd.readouterr().err


MISTAKES = {
    "found in the recipe": (["--set", "distill.alhpa=1"], "did you mean 'alpha'"),
    "found while assembling": (["--set", "distill.terms.0.student=nowhere"], "no tap 'nowhere'"),
    "found by process 0 alone": (["--set", "teacher.fit.lr=1e-9"], "no better than guessing"),
    "found in training": (["--set", "train.lr=1e4", "--set", "train.clip=null"], "is not finite at step"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_all_and_is_told_once(recipe, tmp_path, name):
    options, expected = MISTAKES[name]
    ends = together(train(recipe, tmp_path / "run", *options))
    assert [code for code, _, _ in ends] == [MISTAKE, MISTAKE]
    [told] = [line for _, output, errors in ends for line in (output + errors).splitlines()]
    assert told.startswith("edgestill: ")
    assert expected in told


@pytest.mark.parametrize("key", ["train", "teacher.fit"])
def test_a_batch_without_a_sample_for_each_process_is_refused(recipe, key):
    with pytest.raises(UserError, match=rf"{key}.batch_size must be at least 4, a sample for each of 2 .*; 3 came"):
        assemble(load_recipe(recipe, [f"{key}.batch_size=3"]), silent, processes=Processes(rank=1, count=2))


def test_a_memory_of_one_process_is_refused_with_several():
    recipe = load_recipe("digits", ["distill.terms=[{loss: crd, map: last}]"])
    with pytest.raises(UserError, match="crd: its memory is that of one process; several were started"):
        assemble(recipe, silent, processes=Processes(rank=1, count=2))


def test_without_accelerate_several_processes_are_refused_in_a_line(recipe, tmp_path):
    words = [str(word) for word in train(recipe, tmp_path / "run")[2:]]
    code = f"import sys; sys.modules['accelerate'] = None; from edgestill.cli import main; sys.exit(main({words!r}))"
    ends = together(["-c", code])
    assert [code for code, _, _ in ends] == [MISTAKE, MISTAKE]
    [told] = [line for _, output, errors in ends for line in (output + errors).splitlines()]
    assert "pip install 'edgestill[accelerate]'" in told


def test_a_process_alone_does_not_import_accelerate(alone):
    assert (alone.parent / "said").read_text() == "0 False"


def test_a_launcher_that_starts_one_process_instead_of_several_is_told_apart(monkeypatch, recipe, tmp_path, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == MISTAKE
    assert "torchrun --nproc-per-node" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_verbs_on_a_run_folder_take_one_process(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["export", str(tmp_path)]) == MISTAKE
    assert "only run, train and capture take several processes" in capsys.readouterr().err


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(("size", "pieces"), [(5, 1), (11, 2), (64, 3)])
def test_the_shares_of_a_batch_are_the_shares_of_its_pieces(count, size, pieces):
    """What `Batch.pieces` cuts out of every share, put together, is what it cuts out of the whole batch."""
    shares = [Processes(rank=rank, count=count).rows(size, pieces) for rank in range(count)]
    for number, piece in enumerate(np.array_split(np.arange(size), pieces)):
        cut = np.concatenate([np.array_split(share, min(pieces, len(share)))[number] for share in shares])
        assert sorted(cut) == [*piece]


ROWS, LAYERS = (
    7,
    {"maps": (nn.BatchNorm2d, (3, 4, 4)), "rows": (nn.BatchNorm1d, (3,)), "bf16": (nn.BatchNorm2d, (3, 4, 4))},
)


def normalised(name: str, processes: Processes) -> dict[str, Tensor]:
    """A layer's output, gradients and buffers after two batches, of this process's rows."""
    kind, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(0)
    layer = kind(3, momentum=None if name == "rows" else 0.3, affine=name != "rows")
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    for _ in range(2):
        x = 5 + torch.randn(ROWS, *shape, generator=generator)
        x = x.to(torch.bfloat16 if name == "bf16" else torch.float32)
        weights = torch.randn(ROWS, *shape, generator=generator)
        own = x[processes.rows(ROWS)].requires_grad_()
        layer.zero_grad()
        if processes.count > 1:
            with WholeBatchNorm(processes):
                output = layer(own)
        else:
            output = layer(own)
        (output * weights[processes.rows(ROWS)]).sum().backward()
    assert own.grad is not None
    gradients = {f"gradient of {key}": value.grad for key, value in layer.named_parameters()}
    processes.sum_([*gradients.values()])
    return {"output": output.detach(), "gradient": own.grad, **gradients, **dict(layer.named_buffers())}


@pytest.fixture(scope="module")
def shares_of_three(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("batch norm")
    ends = together([__file__, folder], count=3)
    assert [code for code, _, _ in ends] == [0, 0, 0], ends
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


@pytest.mark.parametrize("name", LAYERS)
def test_batch_norm_over_three_processes_is_that_of_the_whole_batch(shares_of_three, name):
    """To float32 rounding: output, gradients, running statistics; shares of 3, 2 and 2 rows."""
    shares = [shares_of_three[rank][name] for rank in range(3)]
    rounding = {"rtol": 2e-2, "atol": 2e-2} if name == "bf16" else {"rtol": 1e-5, "atol": 2e-6}
    for key, expected in normalised(name, Processes()).items():
        values = [share[key] for share in shares]
        joined = [torch.cat(values)] if key in ("output", "gradient") else values
        for value in joined:
            torch.testing.assert_close(value, expected, **rounding, msg=lambda text, key=key: f"{key}: {text}")


if __name__ == "__main__":
    group = connect("cpu")
    torch.save({name: normalised(name, group) for name in LAYERS}, Path(sys.argv[1]) / f"{group.rank}.pt")


def test_several_students_are_trained_by_both(recipe, tmp_path):
    students = [RECIPE["student"] | {"name": name} for name in ("one", "other")]
    several = recipe.with_name("several.yaml")
    several.write_text(yaml.safe_dump(RECIPE | {"student": students}))
    ends = together(train(several, tmp_path / "run", "--set", "train.epochs=0.5"))
    assert [code for code, _, _ in ends] == [0, 0], ends
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "done"
    assert [one["name"] for one in result["students"]] == ["one", "other"]
    assert [output == "" for _, output, _ in ends] == [False, True], "the second says nothing"
