"""Stores: what a codec keeps, what a file holds, what is damaged, and how a capture is gone on with."""

import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from edgestill.capture import capture, check_begun, finish
from edgestill.data.images import Images
from edgestill.data.views import augment
from edgestill.errors import UserError
from edgestill.losses import ON_BUCKETS, bucketed, dist, dkd, drawn_kl, kl, reverse_kl
from edgestill.losses.reduce import channels_first, pooled
from edgestill.models import ImageInput, Model
from edgestill.signals import Buckets, Draws, Signal
from edgestill.store import Codec, Dense, Description, Sampled, Store, Tap, TopK, Views
from edgestill.store.agreement import disagreement
from edgestill.store.size import cut
from edgestill.store.store import COPY, STORE, shard_path
from edgestill.stores import verify
from edgestill.tasks.images import ImageSamples
from edgestill.tasks.images import Views as Augmented
from edgestill.tasks.samples import Batch
from edgestill.teachers.online import OnlineTeacher

CPU = torch.device("cpu")
N, C = 70, 7
EVERY: list[Codec] = [Dense(), TopK(3, (1.0, 4.0)), Sampled(9, 4.0)]
NAMES = ["dense", "top-k", "sampled"]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def samples() -> ImageSamples:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (N, 6, 6, 1), dtype=np.uint8)
    images = Images(pixels, draw.integers(-1, C, N), tuple("abcdefg"), "data", "noise")
    return ImageSamples(images, Augmented(crop=1, flip=True))


class Asked:
    """A teacher that counts what it is asked, and may fail at one of its passes."""

    def __init__(self, fails_at: int = -1, factor: float = 1.0) -> None:
        torch.manual_seed(1)
        module = nn.Sequential(nn.Flatten(), nn.Linear(36, C))
        self.teacher = OnlineTeacher(Model(module, "t", {}, ImageInput(1, 6, (0.5,), (0.5,))), CPU, torch.float32)
        self.rows: list[tuple[int, int]] = []
        module[1].bias.data[2] *= factor
        self.fails_at = fails_at

    def __call__(self, batch: Batch, taps: list[str]) -> Signal:
        if self.fails_at == 0:
            raise KeyboardInterrupt
        self.fails_at -= 1
        self.rows += [*zip(batch.views.tolist(), batch.indices.tolist(), strict=True)]
        return self.teacher(batch, taps)


def description(codec: Codec, views: int = 3, taps: tuple[Tap, ...] = ()) -> Description:
    return Description("t", "i", "data", N, N, C, Views(views, 5, "crop 1"), codec, taps, batch=8, rows=16, batches=3)


def captured(folder: Path, codec: Codec, teacher: Asked | None = None) -> Store:
    capture(folder, description(codec), samples(), teacher or Asked())
    finish(folder)
    return Store.open(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("of_row", "batch", "total", "passes", "batches"),
    [
        (20, 64, 1102, 1, 1),  # the digits
        (20, 128, 450_000, 55, 1),  # ten views of CIFAR-10
        (2e4, 8, 10_000, 7, 2),  # some blocks of text
        (2e6, 8, 10**6, 1, 4),  # of many classes
        (1012, 8, 10**8, 128, 2),
        (0, 64, 3, 1, 1),
    ],
)
def test_a_shard_is_a_share_of_the_work_and_a_piece_of_some_size(
    of_row: float, batch: int, total: int, passes: int, batches: int
) -> None:
    assert cut(of_row, batch, total) == (passes * batch, batches)
    rows = passes * batches * batch
    assert rows <= max(batch, ceil(total / 64) + batch)
    assert passes * batches <= 256
    assert batches == 1 or rows * of_row < 1.1 * 2**26


@pytest.mark.parametrize("codec", EVERY, ids=NAMES)
def test_a_signal_is_that_of_the_view_it_belongs_to(codec: Codec, tmp_path: Path) -> None:
    teacher = Asked()
    store = captured(tmp_path / "store", codec, teacher)
    assert len(teacher.rows) == len({*teacher.rows}) == 3 * N, "each view of each sample once"
    views, indices = np.array([2, 0, 1, 2, 2]), np.array([69, 3, 3, 0, 69])
    pixels = augment(samples().images.pixels[indices], indices, seed=5, epoch=views, crop=1, flip=True)
    batch = samples().batch(indices, views, 5, None)
    np.testing.assert_array_equal(batch.pixels.numpy(), pixels)
    told, found = teacher.teacher(batch, []).logits, store.signal(views, indices).logits
    if isinstance(codec, Dense):
        torch.testing.assert_close(found, told, rtol=2**-10, atol=1e-6)  # one place of float16
    elif isinstance(codec, TopK):
        assert isinstance(found, Buckets)
        for temperature in (1.0, 4.0):
            whole = (told / temperature).softmax(-1)
            kept = (found.at(temperature) / temperature).softmax(-1)
            torch.testing.assert_close(kept[:, :-1], whole.gather(-1, found.ids), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(kept.sum(-1), torch.ones(5))
        assert found.ids.tolist() == told.topk(3).indices.tolist()
    else:
        assert isinstance(found, Draws)
        whole = (told / 4).softmax(-1)
        shares = torch.zeros_like(whole).scatter_add(-1, found.ids, found.shares)
        assert float((shares - whole).abs().max()) < 1 / 9, "each is drawn as often as it is probable, up to one draw"
        torch.testing.assert_close(found.entropy, -(whole * whole.log()).sum(-1), rtol=1e-4, atol=1e-5)


def test_the_teachers_own_loss_stands_beside_the_signals(tmp_path: Path) -> None:
    store = captured(tmp_path / "store", Dense())
    labels = torch.from_numpy(samples().labels)
    told = [Asked().teacher(samples().batch(np.arange(N), np.full(N, view), 5, None), []).logits for view in range(3)]
    each = [
        nn.functional.cross_entropy(logits, labels.where(labels >= 0, logits.argmax(-1)), reduction="none")
        for logits in told
    ]
    np.testing.assert_allclose(store.losses(), torch.stack(each).mean(0), rtol=1e-5)
    np.testing.assert_array_equal(store.likeliest(), told[0].argmax(-1))


@pytest.mark.parametrize("stopped", [0, 1, 5, 11, 20])
def test_a_capture_that_was_stopped_ends_the_same_and_asks_nothing_twice(stopped: int, tmp_path: Path) -> None:
    captured(tmp_path / "whole", EVERY[2])
    first, second = Asked(fails_at=stopped), Asked()
    with pytest.raises(KeyboardInterrupt):
        captured(tmp_path / "store", EVERY[2], first)
    with pytest.raises(UserError, match="not captured to its end"):
        Store.open(tmp_path / "store")
    captured(tmp_path / "store", EVERY[2], second)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    finished = stopped // 6  # shards of three record batches of two passes
    assert len(second.rows) == 3 * N - finished * 48
    assert not {*first.rows[: finished * 48]} & {*second.rows}


def test_processes_make_their_own_shards_of_the_same_store(tmp_path: Path) -> None:
    captured(tmp_path / "one", Dense())
    for rank in (1, 0):
        capture(tmp_path / "two", description(Dense()), samples(), Asked(), rank=rank, count=2)
    finish(tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_logits_are_encoded_some_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, chunk in (("whole", 2**22), ("rows", 3 * C)):
        monkeypatch.setattr("edgestill.capture.CHUNK", chunk)
        captured(tmp_path / name, EVERY[2])
    assert contents(tmp_path / "whole") == contents(tmp_path / "rows")


def test_a_share_that_is_missing_is_named(tmp_path: Path) -> None:
    capture(tmp_path, description(Dense()), samples(), Asked(), rank=0, count=2)
    with pytest.raises(UserError, match=r"shards \[1, 3\] are not captured"):
        finish(tmp_path)


@pytest.mark.parametrize("codec", EVERY, ids=NAMES)
def test_every_bit_that_flips_is_named(codec: Codec, tmp_path: Path) -> None:
    """Read whole and verified: 100 flips, at random in all files."""
    store = captured(tmp_path / "store", codec)
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    sizes = np.array([path.stat().st_size for path in files])
    draw, views, indices = np.random.default_rng(1), np.repeat(np.arange(3), N), np.tile(np.arange(N), 3)
    right = store.signal(views, indices).logits
    for _ in range(100):
        place = int(draw.integers(sizes.sum()))
        number = int(np.searchsorted(np.cumsum(sizes), place, side="right"))
        path, content = files[number], files[number].read_bytes()
        flipped = bytearray(content)
        flipped[place - int(sizes[:number].sum())] ^= 1 << int(draw.integers(8))
        path.write_bytes(flipped)
        if path.name == COPY:
            assert verify(tmp_path / "store")[1] == [COPY], "which nobody reads"
            path.write_bytes(content)
            continue
        with pytest.raises(UserError, match=rf"{path.name}.* is damaged"):
            Store.open(tmp_path / "store").signal(views, indices)
        if path.name != STORE:
            assert Store.open(tmp_path / "store").damaged(int(path.stem)), "as `store verify` says"
        path.write_bytes(content)
    again = Store.open(tmp_path / "store").signal(views, indices).logits
    same = again if isinstance(again, Tensor) else again.ids
    assert torch.equal(same, right if isinstance(right, Tensor) else right.ids)


def test_a_damaged_record_batch_is_captured_again_alone(tmp_path: Path) -> None:
    store = captured(tmp_path / "store", Dense())
    before, path = contents(tmp_path / "store"), shard_path(tmp_path / "store", 2)
    content = bytearray(path.read_bytes())
    content[store.pieces[2][1].start + 40] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"00002\.arrow: record batch 1 is damaged"):
        Store.open(tmp_path / "store").read(np.arange(2 * 48 + 16, 2 * 48 + 20), ["logits"])
    teacher = Asked()
    captured(tmp_path / "store", Dense(), teacher)
    assert [view * N + sample for view, sample in teacher.rows] == [*range(112, 128)]
    assert contents(tmp_path / "store") == before
    path.unlink()
    captured(tmp_path / "store", Dense())
    assert contents(tmp_path / "store") == before


@pytest.mark.parametrize("codec", EVERY, ids=NAMES)
def test_what_was_begun_is_gone_on_with_by_the_same_teacher_alone(codec: Codec, tmp_path: Path) -> None:
    """The first record batch that is whole is asked for again: here the second of the second shard."""
    with pytest.raises(KeyboardInterrupt):
        captured(tmp_path, codec, Asked(fails_at=13))
    shard_path(tmp_path, 0).unlink()
    pieces, path = json.loads(shard_path(tmp_path, 1).with_suffix(".json").read_text()), shard_path(tmp_path, 1)
    content = bytearray(path.read_bytes())
    content[pieces[0][1] - 20] ^= 1
    path.write_bytes(content)
    teacher = Asked()
    check_begun(tmp_path, samples(), teacher, torch.float16)
    assert teacher.rows == [(0, sample) for sample in range(64, N)] + [(1, 0), (1, 1)]
    check_begun(tmp_path, samples(), Asked(factor=1.0005), torch.float16)
    with pytest.raises(
        UserError, match=r"answers otherwise .* of view [01] of sample \d+ its .* is .*, where the store"
    ):
        check_begun(tmp_path, samples(), Asked(factor=20.0), torch.float16)
    path.unlink()
    check_begun(tmp_path, samples(), Asked(factor=20.0), torch.float16)  # nothing is left to differ from


@pytest.mark.parametrize("codec", EVERY[:2], ids=NAMES[:2])
def test_answers_may_be_apart_as_far_as_another_device_computes(codec: Codec) -> None:
    told, ones = random(40, C), torch.ones(40)
    stored = codec.decode(codec.encode(told, np.zeros(40)), C)
    for places, same in ((6, True), (60, False)):
        own = told + places * 2**-10 * told.abs().median() * random(40, C, seed=2).sign()
        found = disagreement(stored, own, (ones, ones), torch.float16)
        assert (found is None) is same
        assert disagreement(stored, own, (ones, ones), torch.bfloat16) is None


def test_a_store_of_version_1_is_read_and_mended(tmp_path: Path) -> None:
    """It says in one word more what its teacher was; how it is cut stays."""
    of = replace(description(Dense()), teacher="weights in float32, autocast float32", configuration="options")
    capture(tmp_path, of, samples(), Asked())
    finish(tmp_path)
    said = json.loads((tmp_path / STORE).read_text()) | {
        "version": 1,
        "teacher": "weights code in float32, autocast float32",
    }
    for key in ("checksum", "configuration"):
        del said[key]
    (tmp_path / STORE).write_text(
        json.dumps(said | {"checksum": zlib.crc32(json.dumps(said, sort_keys=True).encode())})
    )
    assert Store.open(tmp_path).description == replace(of, configuration="")
    shard_path(tmp_path, 1).unlink()
    teacher = Asked()
    capture(tmp_path, replace(of, rows=8, batches=1), samples(), teacher)
    finish(tmp_path)
    assert len(teacher.rows) == 48
    assert Store.open(tmp_path).signal(np.array([1]), np.array([0])).logits.shape == (1, C)
    with pytest.raises(UserError, match="another teacher: weights in float32, autocast float32, where"):
        capture(tmp_path, replace(of, teacher="others in float32, autocast float32"), samples(), Asked())


def breaking(value: float, classes: slice, tap: bool = False) -> Callable[[Batch, list[str]], Signal]:
    """A teacher some of whose numbers of view 1 of sample 3 are others."""
    teacher = Asked()

    def asks(batch: Batch, taps: list[str]) -> Signal:
        signal = teacher(batch, taps)
        rows = np.flatnonzero((batch.views == 1) & (batch.indices == 3))
        (signal.taps["0"] if tap else signal.logits)[rows, classes] = value
        return signal

    return asks


@pytest.mark.parametrize("codec", EVERY, ids=NAMES)
@pytest.mark.parametrize(
    ("value", "classes", "said"),
    [
        (np.nan, slice(2, 3), "greatest logit is nan"),
        (np.inf, slice(2, 3), "greatest logit is inf"),
        (-np.inf, slice(None), "greatest logit is -inf"),
    ],
    ids=["nan", "inf", "nothing"],
)
def test_an_answer_that_is_none_is_refused_with_its_view(
    value: float, classes: slice, said: str, codec: Codec, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"to view 1 of sample 3 is none: its {said}; it has to be finite"):
        capture(tmp_path, description(codec), samples(), breaking(value, classes))


@pytest.mark.parametrize("codec", EVERY, ids=NAMES)
def test_a_class_may_be_impossible(codec: Codec, tmp_path: Path) -> None:
    capture(tmp_path, description(codec), samples(), breaking(-np.inf, slice(2, 6)))
    finish(tmp_path)
    found = Store.open(tmp_path).signal(np.array([1]), np.array([3])).logits
    ids = found.isfinite().nonzero()[:, 1] if isinstance(found, Tensor) else found.ids[:, :2]
    assert {*ids.flatten().tolist()} <= {0, 1, 6}


@pytest.mark.parametrize("keep", ["pooled", "int8"])
def test_a_tap_that_is_not_finite_is_refused(keep: str, tmp_path: Path) -> None:
    of = description(Dense(), taps=(Tap("0", keep, (36,)),))
    with pytest.raises(UserError, match="to view 1 of sample 3 is none: its largest number of the tap 0 is nan"):
        capture(tmp_path, of, samples(), breaking(np.nan, slice(5, 6), tap=True))


def test_a_class_that_an_older_store_has_drawn_beyond_the_last_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgestill.capture.refuse_broken", lambda *_: None)
    capture(tmp_path, description(EVERY[2]), samples(), breaking(np.nan, slice(2, 3)))
    finish(tmp_path)
    assert Store.open(tmp_path).signal(np.array([1]), np.array([4])).logits.ids.max() < C
    with pytest.raises(UserError, match="has drawn the class 7 of 7: its teacher's answer was not finite"):
        Store.open(tmp_path).signal(np.array([1]), np.array([3]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": "u"}, "another teacher: t, where the recipe has u"),
        ({"data": "other"}, "another data: data, where the recipe has other"),
        ({"input": "j"}, "another input: i, where the recipe has j"),
        ({"classes": 8}, "another classes: 7, where the recipe has 8"),
        ({"views": Views(3, 6, "crop 1")}, "another views: "),
        (
            {"codec": TopK(2, (1.0,))},
            'has codec {"name": "dense"}, where the recipe\'s capture has {"name": "top-k", "k": 2',
        ),
        ({"batch": 4}, "has batch 8, where the recipe's capture has 4: set it back, or give another --out"),
    ],
)
def test_a_store_of_something_else_is_refused_with_both(change: dict, said: str, tmp_path: Path) -> None:
    captured(tmp_path / "store", Dense())
    before = contents(tmp_path / "store")
    with pytest.raises(UserError, match=said):
        capture(tmp_path / "store", replace(description(Dense()), **change), samples(), Asked())
    assert contents(tmp_path / "store") == before


@pytest.mark.parametrize("note", ["", "[]", '[["a", 1, 2]]', "[[0, 8, 1], [8, 16, 2]]"])
def test_a_capture_that_was_stopped_at_its_first_file_is_gone_on_with(note: str, tmp_path: Path) -> None:
    (tmp_path / "store" / "shards").mkdir(parents=True)
    (tmp_path / "store" / f"{STORE}.partial").write_text("{")
    captured(tmp_path / "store", Dense())
    captured(tmp_path / "whole", Dense())
    assert contents(tmp_path / "store").keys() - contents(tmp_path / "whole").keys() == set()
    shutil.rmtree(tmp_path / "store")
    capture(tmp_path / "store", description(Dense()), samples(), Asked())
    shard_path(tmp_path / "store", 1).with_suffix(".json").write_text(note)  # a power cut may leave it empty
    teacher = Asked()
    captured(tmp_path / "store", Dense(), teacher)
    assert len(teacher.rows) == 48
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.parametrize("keep", ["pooled", "int8"])
def test_a_tap_that_is_not_what_it_was_is_refused(keep: str, tmp_path: Path) -> None:
    """Where the logits are."""

    class Scaled(Asked):
        scale = 1.0

        def __call__(self, batch: Batch, taps: list[str]) -> Signal:
            signal = super().__call__(batch, taps)
            return Signal(signal.logits, {path: self.scale * tap for path, tap in signal.taps.items()})

    teacher, whole = Scaled(), (Tap("0", keep, (36,)),)
    capture(tmp_path, description(Dense(), taps=whole), samples(), teacher)
    teacher.scale = 1.02
    check_begun(tmp_path, samples(), teacher, torch.float16)
    teacher.scale = 1.5
    with pytest.raises(UserError, match=r"the teacher's tap 0 is not what it was .*: it is 33.3% of its length away"):
        check_begun(tmp_path, samples(), teacher, torch.float16)


def test_what_is_drawn_is_right_in_the_mean_over_rows(tmp_path: Path) -> None:
    """Each row has an offset of its own."""
    probabilities = torch.tensor([0.3, 0.25, 0.2, 0.1, 0.07, 0.05, 0.03])

    class Constant(Asked):
        def __call__(self, batch: Batch, taps: list[str]) -> Signal:
            return Signal(probabilities.log().expand(len(batch.indices), -1), {})

    store = captured(tmp_path, Sampled(4, 1.0), Constant())
    views, rows = np.divmod(np.arange(store.description.total), N)
    draws = store.signal(views, rows).logits
    shares = torch.zeros(len(rows), C).scatter_add(1, draws.ids, draws.shares)
    noise = shares.std(0) / len(rows) ** 0.5
    assert ((shares.mean(0) - probabilities).abs() <= 3.5 * noise + 1e-6).all()
    assert len({tuple(row) for row in shares.tolist()}) > 3


def test_a_shard_that_was_noted_is_put_in_its_place(tmp_path: Path) -> None:
    capture(tmp_path, description(Dense()), samples(), Asked())
    path = shard_path(tmp_path, 2)
    path.rename(path.with_name(f"{path.name}.partial"))
    teacher = Asked()
    captured(tmp_path, Dense(), teacher)
    assert not teacher.rows
    assert path.is_file()


@pytest.mark.parametrize("broken", ["", "{", None], ids=["empty", "torn", "gone"])
def test_what_a_store_is_of_is_mended_from_its_copy(broken: str | None, tmp_path: Path) -> None:
    captured(tmp_path, Dense())
    before, path = contents(tmp_path), tmp_path / STORE
    path.unlink()
    if broken is not None:
        path.write_text(broken)
    with pytest.raises(UserError, match=r"`edgestill capture` (into the store mends it|makes one)"):
        Store.open(tmp_path)
    teacher = Asked()
    captured(tmp_path, Dense(), teacher)
    assert not teacher.rows
    assert contents(tmp_path) == before
    for name in (STORE, COPY):
        (tmp_path / name).write_text("{")
    with pytest.raises(UserError, match=rf"{COPY} is damaged: .*; remove the folder, and capture it again"):
        captured(tmp_path, Dense())
    (tmp_path / COPY).unlink()
    with pytest.raises(UserError, match=rf"{STORE} is damaged: .*; remove the folder, and capture it again"):
        captured(tmp_path, Dense())


@pytest.mark.parametrize("name", [STORE, "shards/00001.json"])
def test_a_disk_that_does_not_take_a_note_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        captured(tmp_path, Dense(), Asked(fails_at=7))
    (tmp_path / f"{name}.partial").unlink(missing_ok=True)
    (tmp_path / f"{name}.partial").mkdir()
    with pytest.raises(UserError, match=rf"{name} cannot be written: .*; the same command goes on"):
        captured(tmp_path, Dense())


@pytest.mark.parametrize("text", ["[1]", "{}", "", '{"version": 1, "checksum": 0}'])
def test_a_description_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / STORE).write_text(text)
    with pytest.raises(UserError, match=r"store\.json is damaged"):
        Store.open(tmp_path)


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(UserError, match="cannot be made"):
            capture(place, description(Dense()), samples(), Asked())


def test_an_offset_at_the_end_draws_the_last_class() -> None:
    codec = Sampled(16, 1.0)
    columns = codec.encode(torch.zeros(3, 10), np.full(3, np.nextafter(1, 0)))
    assert columns["ids"].max() == 9


def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something that is no store"):
        capture(tmp_path, description(Dense()), samples(), Asked())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match=r"is no store: it has no store\.json"):
        Store.open(tmp_path)


def test_a_logit_beyond_float16_is_refused() -> None:
    with pytest.raises(UserError, match=r"1e\+05; float16, in which it would be kept, ends at 65504"):
        Dense().encode(torch.tensor([[1e5, 0.0]]), np.zeros(1))
    kept = Dense().encode(torch.tensor([[-torch.inf, 2.0]]), np.zeros(1))
    assert Dense().decode(kept, 2).tolist() == [[-torch.inf, 2.0]]


def test_shards_are_arrow_files_that_others_open(tmp_path: Path) -> None:
    captured(tmp_path / "store", Dense())
    path = shard_path(tmp_path / "store", 0)
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    assert table.column_names == ["sample", "view", "loss", "logits"]
    frame = table.to_pandas()
    told = np.stack(frame["logits"].to_list()).view(np.float16)
    batch = samples().batch(np.arange(8), np.zeros(8, np.int64), 5, None)
    np.testing.assert_allclose(told[:8], Asked().teacher(batch, []).logits, rtol=2**-10, atol=1e-6)
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "arrow", data_files=str(tmp_path / "store" / "shards" / "*.arrow"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert len(loaded) == 3 * N
    assert loaded[0]["sample"] == 0


@pytest.mark.parametrize("codec", [Dense(), TopK(3, (1.0, 4.0)), Sampled(8, 1.0)], ids=lambda one: type(one).__name__)
def test_polars_and_duckdb_read_every_codec(tmp_path: Path, codec: Codec) -> None:
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    captured(tmp_path / "store", codec)
    paths = [*sorted((tmp_path / "store" / "shards").glob("*.arrow"))]
    assert len(paths) > 1
    shards = pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths])
    assert polars.concat([polars.read_ipc(path) for path in paths]).to_dict(as_series=False) == shards.to_pydict()
    with duckdb.connect() as database:
        database.register("shards", shards)
        found = database.sql("select view, count(*) from shards group by view order by view").fetchall()
        assert found == [(0, N), (1, N), (2, N)]
        every = database.sql("select * from shards").fetchall()
    for row, wanted in zip(every, shards.to_pylist(), strict=True):
        assert [[*value] if isinstance(value, tuple) else value for value in row] == [*wanted.values()]


def buckets(logits: Tensor, k: int, temperature: float) -> Buckets:
    codec = TopK(k, (temperature,))
    return codec.decode(codec.encode(logits, np.zeros(len(logits))), logits.shape[-1])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("loss", sorted(ON_BUCKETS, key=lambda one: one.__name__), ids=lambda one: one.__name__)
def test_a_divergence_over_buckets_is_a_lower_bound(loss: Callable[..., Tensor], temperature: float) -> None:
    student, teacher = random(40, 30), random(40, 30, seed=1)
    whole = loss(student, teacher, temperature=temperature)
    found = []
    for k in (1, 5, 20, 29):
        told = buckets(teacher, k, temperature)
        value = loss(bucketed(student, told.ids, temperature), told.at(temperature), temperature=temperature)
        found.append(float(value))
    assert 0 <= found[0] < found[1] < found[2] < float(whole) * 1.001
    assert found[-1] == pytest.approx(float(whole), rel=2e-3), "all classes but one are all of them"
    told = buckets(teacher, 5, temperature)
    same = loss(bucketed(teacher, told.ids, temperature), told.at(temperature), temperature=temperature)
    assert float(same) == pytest.approx(0, abs=1e-5)


def gradient(student: Tensor, draws: Draws) -> Tensor:
    own = student.clone().requires_grad_()
    drawn_kl(own, draws.ids, draws.shares, draws.entropy, temperature=draws.temperature).backward()
    assert own.grad is not None
    return own.grad


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_drawn_classes_give_the_gradient_of_kl_without_bias(temperature: float) -> None:
    """Over 400 draws within 4 standard errors in every entry, with less variance than independent draws have."""
    student, teacher, codec = random(6, 12), random(6, 12, seed=1), Sampled(8, temperature)
    own = student.clone().requires_grad_()
    value = kl(own, teacher, temperature=temperature)
    value.backward()
    draw = np.random.default_rng(0)
    found, values = [], []
    for _ in range(400):
        draws = codec.decode(codec.encode(teacher, draw.random(6)), 12)
        found.append(gradient(student, draws))
        values.append(drawn_kl(student, draws.ids, draws.shares, draws.entropy, temperature=temperature))
    every, read = torch.stack(found).double(), torch.stack(values).detach()
    probabilities = (teacher.double() / temperature).softmax(-1)
    part = (8 * probabilities) % 1  # a class is drawn that share of times once more than the rest
    error = temperature / 6 * (part * (1 - part)).sqrt() / 8
    assert own.grad is not None
    assert ((every.mean(0) - own.grad).abs() <= 4 * error / 20 + 1e-7).all()
    assert read.mean().item() == pytest.approx(value.item(), abs=4 * read.std().item() / 20)
    independent = (temperature / 6) ** 2 * (probabilities * (1 - probabilities) / 8).sum()
    assert every.var(0).sum() < 0.7 * independent


def test_no_class_of_probability_zero_is_drawn() -> None:
    teacher = torch.full((50, 6), -torch.inf)
    teacher[:, 1], teacher[:, 4] = 0.0, 1.0
    codec = Sampled(7, 1.0)
    draws = codec.decode(codec.encode(teacher, np.linspace(0, 1, 50, endpoint=False)), 6)
    assert {*draws.ids[draws.shares > 0].tolist()} == {1, 4}
    assert draws.entropy.isfinite().all()


@pytest.mark.parametrize(
    ("codec", "loss", "temperature", "said"),
    [
        (TopK(3, (1.0,)), dkd, 1.0, "take the codec dense"),
        (TopK(3, (1.0, 2.0)), kl, 4.0, "at temperatures of 1, 2, not at 4"),
        (Sampled(3, 1.0), dkd, 1.0, "drawn for forward KL, the loss kl: take the codec dense"),
        (Sampled(3, 1.0), dist, 1.0, "drawn for forward KL, the loss kl: take the codec dense"),
        (Sampled(3, 1.0), reverse_kl, 1.0, "drawn for forward KL, the loss kl: take the codec top-k or dense"),
        (Sampled(3, 1.0), kl, 2.0, "drawn at a temperature of 1, not 2"),
        (TopK(3, (1.0,)), kl, 1.0, None),
        (Sampled(3, 2.0), kl, 2.0, None),
        (Dense(), dkd, 3.0, None),
    ],
)
def test_what_a_codec_cannot_serve_is_said(codec: Codec, loss: Callable, temperature: float, said: str | None) -> None:
    found = codec.refuses(loss, temperature, False)
    assert found is None if said is None else found is not None and said in found


def test_a_store_is_described_in_words(tmp_path: Path) -> None:
    captured(tmp_path / "store", TopK(3, (1.0, 4.0)))
    said = json.loads((tmp_path / "store" / STORE).read_text())
    assert said["codec"] == {"name": "top-k", "k": 3, "temperatures": [1.0, 4.0]}
    assert said["complete"] is True


KILLED = """
import os, random, signal, sys
from pathlib import Path

sys.path[:0] = [{tests!r}, {root!r}]
from test_store import Asked, Sampled, captured

folder, codec, draw = Path(sys.argv[1]), Sampled(9, 4.0), random.Random(0)
last = int(sys.argv[2])  # calls of functions in a capture that is left alone
for _ in range(50):
    child = os.fork()
    if not child:
        left = draw.randrange(last)

        def count(frame, event, argument):
            global left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        captured(folder, codec)
        os._exit(0)
    draw.random()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_fifty_kills_leave_a_store_that_ends_the_same(tmp_path: Path) -> None:
    """Each in the midst of some function, wherever that is."""
    captured(tmp_path / "warm", EVERY[2])
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    captured(tmp_path / "whole", EVERY[2])
    sys.setprofile(None)
    script = KILLED.format(tests=str(Path(__file__).parent), root=str(Path(__file__).parents[1]))
    place = tmp_path / "store"
    ran = subprocess.run([sys.executable, "-c", script, place, str(calls)], capture_output=True, text=True, check=True)
    ends = [int(line) for line in ran.stdout.split()]
    assert len(ends) == 50
    assert ends.count(-9) > 20, "others were through before"
    captured(place, EVERY[2])
    assert contents(place) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "shape", [(5, 4, 4), (4, 4, 5), (9, 5), (5,)], ids=["maps", "channels-last", "tokens", "vector"]
)
def test_taps_come_back_as_vectors_or_in_8_bits_of_their_channels(shape: tuple[int, ...]) -> None:
    features = random(6, *shape)
    channel = {(4, 4, 5): 3, (9, 5): 2}.get(shape, 1)
    largest = features.abs().amax([dim for dim in range(1, features.dim()) if dim != channel], keepdim=True)
    whole = Tap("a.b", "int8", shape)
    found = whole.decode(whole.encode(features))
    assert found.shape == features.shape
    assert ((found - features).abs() <= largest / 254 * 1.001).all()
    assert whole.bytes == features[0].numel() + 4 * 5
    mean = Tap("a.b", "pooled", shape)
    torch.testing.assert_close(
        mean.decode(mean.encode(features)), pooled(channels_first(features)), rtol=2**-10, atol=1e-6
    )


def test_taps_stand_beside_the_signals(tmp_path: Path) -> None:
    teacher = Asked()
    of = description(TopK(3, (4.0,)), taps=(Tap("0", "pooled", (36,)), Tap("1", "int8", (7,))))
    capture(tmp_path / "store", of, samples(), teacher)
    finish(tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.description == of
    views, indices = np.array([2, 0, 1]), np.array([69, 3, 3])
    told = teacher.teacher(samples().batch(indices, views, 5, None), ["0", "1"])
    found = store.signal(views, indices, ["1", "0"])
    torch.testing.assert_close(found.taps["0"], told.taps["0"], rtol=2**-10, atol=1e-6)
    torch.testing.assert_close(found.taps["1"], told.taps["1"], rtol=0, atol=0.06)
    assert not store.signal(views, indices).taps
