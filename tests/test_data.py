"""Data: what is read from parquet, folders and arrays, how it is decoded, and how splits are made from it."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from edgestill.data.images import Images
from edgestill.data.sources import load_splits, resolve, splits_of
from edgestill.data.splitting import hold_out, keep_labels, subset
from edgestill.errors import UserError
from edgestill.functions import load_function
from image_files import NAMES, encode, noise, write

SHARED = Path(__file__).parents[2] / "shared"
NO_ROOM = 2**62


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))


def load(spec: object, **options: Any) -> Images:
    return load_splits({"train": spec}, **options)["train"]


@pytest.fixture
def shards(tmp_path) -> tuple[str, np.ndarray, list[int | None]]:
    pixels, labels = noise(300), [row % 3 if row % 7 else None for row in range(300)]
    encoded = [encode(image) for image in pixels]
    for shard, rows in enumerate((slice(0, 190), slice(190, 300))):
        write(tmp_path / f"train-0000{shard}-of-00002.parquet", encoded[rows], labels[rows])
    return str(tmp_path / "train-*.parquet"), pixels, labels


def test_shards_are_read_in_the_order_of_their_names(shards):
    spec, pixels, labels = shards
    images = load(spec)
    assert images.classes == NAMES
    assert images.labels.tolist() == [-1 if label is None else label for label in labels]
    assert images.labels.dtype == np.int64
    np.testing.assert_array_equal(images.pixels[:], pixels)
    np.testing.assert_array_equal(images.pixels[np.array([200, 3, 200])], pixels[[200, 3, 200]])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_pixels_are_the_same_from_the_map_and_on_demand_whatever_the_workers(shards, tmp_path, workers):
    spec, pixels, _ = shards
    mapped = load(spec, workers=workers, cache=tmp_path / f"cache{workers}")
    on_demand = load(spec, workers=workers, spare=NO_ROOM)
    assert isinstance(mapped.pixels, np.memmap)
    assert not isinstance(on_demand.pixels, np.ndarray)
    rows = np.random.default_rng(1).permutation(300)
    for images in (mapped, on_demand):
        assert images.pixels.shape == pixels.shape
        np.testing.assert_array_equal(images.pixels[rows], pixels[rows])
    assert on_demand.pixels[np.array([], np.int64)].shape == (0, 6, 5, 3)
    assert mapped.fingerprint == on_demand.fingerprint


def test_the_map_is_reused_and_an_unfinished_one_is_not(shards, tmp_path):
    spec, pixels, _ = shards
    load(spec)
    (path,) = (tmp_path / "cache" / "pixels").iterdir()
    before = path.stat().st_mtime_ns
    load(spec)
    assert path.stat().st_mtime_ns == before

    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    np.testing.assert_array_equal(load(spec).pixels[:], pixels)
    assert path.read_bytes() == whole


def test_what_a_killed_process_left_behind_is_cleaned_up(shards, tmp_path):
    folder = tmp_path / "cache" / "pixels"
    folder.mkdir(parents=True)
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    (folder / f"x.npy.{child.pid}.partial").write_bytes(b"half of it")
    (folder / f"y.npy.{os.getppid()}.partial").write_bytes(b"still being written")
    load(shards[0])
    assert [path.name for path in folder.glob("*.partial")] == [f"y.npy.{os.getppid()}.partial"]


def test_reading_local_data_never_opens_a_connection(shards, class_folders):
    connections: list[str] = []
    watching = True

    def hook(event: str, _: Any) -> None:
        if watching and event in ("socket.connect", "socket.getaddrinfo"):
            connections.append(event)

    sys.addaudithook(hook)  # cannot be removed again, only silenced
    load(shards[0])
    load_splits(splits_of(class_folders))
    watching = False
    assert not connections


def test_a_cache_that_cannot_be_written_means_decoding_on_demand(shards, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "pixels").write_text("a file where the folder should be")
    np.testing.assert_array_equal(load(shards[0]).pixels[:], shards[1])


def test_the_fingerprint_is_of_the_content(tmp_path):
    pixels = noise(20)
    encoded, labels = [encode(image) for image in pixels], [row % 3 for row in range(20)]
    one = load(str(write(tmp_path / "a" / "all.parquet", encoded, labels))).fingerprint
    write(tmp_path / "b" / "x-0.parquet", encoded[:3], labels[:3])
    write(tmp_path / "b" / "x-1.parquet", encoded[3:], labels[3:])
    assert load(str(tmp_path / "b")).fingerprint == one
    other_label = [*labels[:-1], (labels[-1] + 1) % 3]
    assert load(str(write(tmp_path / "c.parquet", encoded, other_label))).fingerprint != one
    other_image = [*encoded[:-1], encode(255 - pixels[-1])]
    assert load(str(write(tmp_path / "d.parquet", other_image, labels))).fingerprint != one
    # The same path with other content: nothing remembered may answer for it.
    assert load(str(write(tmp_path / "a" / "all.parquet", other_image, labels))).fingerprint != one


def test_labels_may_be_missing_altogether(tmp_path):
    encoded = [encode(image) for image in noise(4)]
    data = {
        "train": str(write(tmp_path / "train.parquet", encoded, None)),
        "test": str(write(tmp_path / "test.parquet", encoded, [0, 1, 2, 0])),
    }
    splits = load_splits(data)
    assert splits["train"].labels.tolist() == [-1] * 4
    assert splits["train"].classes == splits["test"].classes == NAMES


def test_classes_without_names_are_counted_over_all_splits(tmp_path):
    encoded = [encode(image) for image in noise(3)]
    data = {
        "train": str(write(tmp_path / "train.parquet", encoded, [0, 1, 3], names=None)),
        "test": str(write(tmp_path / "test.parquet", encoded, [0, 1, 1], names=None)),
    }
    assert load_splits(data)["test"].classes == ("0", "1", "2", "3")


def test_labels_follow_the_names_of_the_training_split(tmp_path):
    encoded = [encode(image) for image in noise(3)]
    train = str(write(tmp_path / "train.parquet", encoded, [0, 1, 2]))
    swapped = str(write(tmp_path / "test.parquet", encoded, [0, 1, 0], names=("fox", "cat")))
    assert load_splits({"train": train, "test": swapped})["test"].labels.tolist() == [2, 0, 2]
    foreign = str(write(tmp_path / "test.parquet", encoded, [0, 1, 0], names=("fox", "catt")))
    with pytest.raises(UserError, match=r"'catt'.*did you mean 'cat'"):
        load_splits({"train": train, "test": foreign})


def test_grey_images_keep_one_channel_only_when_every_split_is_grey(tmp_path):
    grey, colour = noise(3, channels=1), noise(3)
    for name, pixels in (("train", grey), ("test", colour)):
        write(tmp_path / f"{name}.parquet", [encode(image) for image in pixels], [0, 1, 2])
    train, test = str(tmp_path / "train.parquet"), str(tmp_path / "test.parquet")
    np.testing.assert_array_equal(load(train).pixels[:], grey)
    both = load_splits({"train": train, "test": test})
    np.testing.assert_array_equal(both["train"].pixels[:], np.repeat(grey, 3, axis=3))
    np.testing.assert_array_equal(both["test"].pixels[:], colour)


def test_transparency_is_laid_over_white_and_16_bits_become_8(tmp_path):
    clear, deep = io.BytesIO(), io.BytesIO()
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(clear, "PNG")
    Image.fromarray(np.array([[0, 257 * 7], [65535, 257 * 200]], np.uint16)).save(deep, "PNG")
    images = load(str(write(tmp_path / "a.parquet", [clear.getvalue(), deep.getvalue()], [0, 1])))
    assert (images.pixels[:][0] == 255).all()
    assert images.pixels[:][1, :, :, 0].tolist() == [[0, 7], [255, 200]]


def test_images_stand_upright_by_their_exif(tmp_path):
    pixels = noise(1)[0]
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, exif=exif)
    images = load(str(write(tmp_path / "a.parquet", [buffer.getvalue()], [0])))
    np.testing.assert_array_equal(images.pixels[:][0], np.rot90(pixels, -1))


def test_images_of_many_sizes_need_data_size(tmp_path):
    flat = [np.full((height, width, 3), 90, np.uint8) for height, width in ((9, 20), (30, 11), (8, 8))]
    spec = str(write(tmp_path / "a.parquet", [encode(image) for image in flat], [0, 1, 2]))
    with pytest.raises(UserError, match=r"data\.size.*8×8.*9×20"):
        load(spec)
    images = load(spec, size=8)
    assert images.pixels.shape == (3, 8, 8, 3)
    assert (images.pixels[:] == 90).all()


def test_size_keeps_the_middle_of_the_longer_side(tmp_path):
    stripes = np.zeros((8, 24, 3), np.uint8)
    stripes[:, 8:16] = 255
    images = load(str(write(tmp_path / "a.parquet", [encode(stripes)], [0])), size=8)
    assert (images.pixels[:] == 255).all()
    np.testing.assert_array_equal(load((stripes[None], [0]), size=8).pixels[:], images.pixels[:])


@pytest.mark.parametrize("spare", [0, NO_ROOM])
def test_a_broken_image_is_named_by_its_row(tmp_path, spare):
    encoded: list[bytes | None] = [encode(image) for image in noise(200, 40, 40)]
    truncated = encoded[150]
    encoded[150] = truncated[: len(truncated) // 2]
    spec = str(write(tmp_path / "a.parquet", encoded, [0] * 200))
    with pytest.raises(UserError, match=r"row 150 of .*a\.parquet"):
        load(spec, spare=spare, workers=3).pixels[:]
    encoded[20] = b"no image at all"
    with pytest.raises(UserError, match="row 20 of"):
        load(str(write(tmp_path / "b.parquet", encoded, [0] * 200)), workers=3)
    encoded[10] = None
    with pytest.raises(UserError, match="row 10 of"):
        load(str(write(tmp_path / "c.parquet", encoded, [0] * 200)))
    finished = tmp_path / "cache" / "pixels"
    assert not finished.exists() or not list(finished.iterdir())


def test_a_label_out_of_range_is_named_by_its_row(tmp_path):
    encoded = [encode(image) for image in noise(4)]
    with pytest.raises(UserError, match=r"3 classes.*row 2 has 3"):
        load(str(write(tmp_path / "a.parquet", encoded, [0, 1, 3, 2])))
    with pytest.raises(UserError, match="row 1 has -2"):
        load((noise(3), [0, -2, 1]))


def test_a_table_without_images_says_which_columns_it_has(tmp_path):
    parquet.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="'image' or 'img'; its columns are text, label"):
        load(str(tmp_path / "a.parquet"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match=r"b\.parquet cannot be read as parquet"):
        load(str(tmp_path / "b.parquet"))
    write(tmp_path / "c.parquet", [], [])
    with pytest.raises(UserError, match="train split needs images"):
        load(str(tmp_path / "c.parquet"))


@pytest.fixture
def class_folders(tmp_path) -> Path:
    for split, classes in (("train", NAMES), ("test", NAMES[1:])):
        for number, name in enumerate(classes):
            folder = tmp_path / "animals [1]" / split / name / "deeper"
            folder.mkdir(parents=True)
            (folder / "b.png").write_bytes(encode(noise(1, seed=number)[0]))
            (folder.parent / "a.webp").write_bytes(encode(noise(1, seed=10 + number)[0], "WEBP"))
            (folder / "notes.txt").write_text("not an image")
            (folder / "._b.png").write_bytes(b"a stray file of another system")
    return tmp_path / "animals [1]"


def test_class_folders_are_classes_by_name_and_stray_files_are_passed_over(class_folders):
    splits = load_splits(splits_of(class_folders))
    assert splits["train"].classes == NAMES
    assert splits["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert splits["test"].labels.tolist() == [1, 1, 2, 2]
    np.testing.assert_array_equal(splits["train"].pixels[:][3], noise(1, seed=1)[0])
    with pytest.raises(UserError, match="holds the splits train, test"):
        load(class_folders)


def test_a_folder_of_images_alone_is_unlabelled(class_folders):
    images = load(class_folders / "train" / "cat" / "deeper")
    assert images.labels.tolist() == [-1]


def test_a_broken_file_of_a_folder_is_named(class_folders):
    broken = class_folders / "train" / "dog" / "c.png"
    broken.write_bytes(b"")
    with pytest.raises(UserError, match=r"row 3 of .*dog/c\.png"):
        load(class_folders / "train")


def test_arrays_are_taken_as_they_are():
    pixels = noise(3, channels=1)
    images = load((pixels[..., 0], [1, None, 0], NAMES))
    np.testing.assert_array_equal(images.pixels[:], pixels)
    assert images.labels.tolist() == [1, -1, 0]
    assert images.classes == NAMES
    assert load(lambda: (pixels, None)).labels.tolist() == [-1] * 3
    assert load((pixels, [1, 0, 0])).fingerprint != images.fingerprint


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ((noise(2).astype(np.float32), [0, 1]), "uint8.*float32"),
        ((noise(2), [0]), "2 images need as many labels; 1 came"),
        ((noise(2), [0, 0.5]), "whole numbers.*row 1"),
        ((noise(2, channels=2), [0, 1]), "1 or 3 channels"),
        (3, "int came"),
        ((noise(0), []), "needs images"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(split, message):
    with pytest.raises(UserError, match=message):
        load(split)


def test_a_function_of_a_file_gives_the_splits(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def splits():\n    x = np.zeros((4, 5, 5), np.uint8)\n"
        "    return {'train': (x, [0, 1, 0, 1]), 'test': (x, [1, 1, 0, 0], ('no', 'yes'))}\n"
        "def broken():\n    raise RuntimeError('no disk')\n"
    )
    splits = load_splits(splits_of("mine.py:splits", tmp_path))
    assert splits["test"].classes == ("no", "yes")
    assert splits["train"].pixels.shape == (4, 5, 5, 1)
    with pytest.raises(UserError, match="raised RuntimeError: no disk"):
        splits_of("mine.py:broken", tmp_path)
    with pytest.raises(UserError, match="no function 'split'; did you mean 'splits'"):
        load_function(f"{tmp_path}/mine.py:split")
    with pytest.raises(UserError, match="not there"):
        resolve("other.py:splits", tmp_path)


@pytest.mark.parametrize("validation", ["validation", "valid", "val", None])
@pytest.mark.parametrize("inside", ["", "data"])
def test_a_folder_tells_its_splits_by_name(tmp_path, inside, validation):
    for split in filter(None, ("train", "test", validation)):
        write(tmp_path / inside / f"{split}-00000.parquet", [encode(image) for image in noise(2)], [0, 1])
    found = splits_of(tmp_path)
    assert set(found) == {"train", "test"} | ({"validation"} if validation else set())
    assert load_splits(found)["test"].labels.tolist() == [0, 1]


def test_a_folder_without_a_test_split_says_what_it_has(tmp_path):
    write(tmp_path / "train.parquet", [encode(image) for image in noise(2)], [0, 1])
    with pytest.raises(UserError, match="no test split; found: train"):
        splits_of(tmp_path)


@pytest.mark.parametrize(
    "spec", ["nothing.parquet", "nowhere/x-*.parquet", "a/b/c", "../up/there", "here/nothing", "mnist"]
)
def test_a_path_that_is_not_there_is_named_before_any_work(tmp_path, spec):
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match="looked for") as error:
        resolve(spec, tmp_path)
    assert spec in str(error.value)
    assert "\n" not in str(error.value)


def test_resolve_keeps_hub_ids_and_is_idempotent(tmp_path, class_folders):
    assert resolve("uoft-cs/cifar10", tmp_path) == "uoft-cs/cifar10"
    assert resolve("uoft-cs/cifar10:train", tmp_path) == "uoft-cs/cifar10:train"
    write(class_folders / "a.parquet", [], [])
    for spec in ("animals [1]", "animals [1]/a.parquet", "animals [[]1]/*.parquet"):
        once = resolve(spec, tmp_path)
        assert Path(once).is_absolute()
        assert resolve(once, Path("/")) == once


def test_unknown_splits_are_refused():
    with pytest.raises(UserError, match="did you mean 'validation'"):
        load_splits({"validatoin": (noise(1), [0])})


def many(labelled: int = 300, unlabelled: int = 50) -> Images:
    labels = np.concatenate([np.arange(labelled) % 3, np.full(unlabelled, -1)])
    return load((noise(labelled + unlabelled), labels, NAMES))


def test_hold_out_takes_the_same_share_of_every_class_and_no_unlabelled_sample():
    images = many()
    rest, held = hold_out(images, 0.1, seed=0)
    assert np.bincount(held.labels).tolist() == [10, 10, 10]
    assert (rest.labels == -1).sum() == 50
    together = np.concatenate([rest.pixels[:], held.pixels[:]])
    assert len(together) == len(np.unique(together.reshape(350, -1), axis=0)) == 350
    again, other = hold_out(images, 0.1, seed=0)[1], hold_out(images, 0.1, seed=1)[1]
    np.testing.assert_array_equal(again.pixels[:], held.pixels[:])
    assert again.fingerprint == held.fingerprint != other.fingerprint != images.fingerprint


def test_hold_out_has_the_exact_total_where_classes_do_not_divide():
    images = load((noise(17), [0] * 7 + [1] * 6 + [2] * 4))
    _, held = hold_out(images, 0.3, seed=0)
    assert len(held) == round(0.3 * 17)
    assert np.bincount(held.labels).tolist() == [2, 2, 1]


@pytest.mark.parametrize("share", [0.0, 1.0, 0.001, 1.5, -0.2])
def test_hold_out_refuses_a_share_that_empties_a_side(share):
    with pytest.raises(UserError, match="both sides"):
        hold_out(many(), share, seed=0)


def test_keep_labels_keeps_that_many_of_each_class():
    images = many()
    kept = keep_labels(images, 10, seed=0)
    assert np.bincount(kept.labels[kept.labels >= 0]).tolist() == [10, 10, 10]
    assert (images.labels[kept.labels >= 0] == kept.labels[kept.labels >= 0]).all()
    assert len(kept) == len(images)
    assert (keep_labels(images, 10, seed=1).labels != kept.labels).any()
    assert kept.fingerprint != images.fingerprint
    with pytest.raises(UserError, match="'cat' of the train split has 100"):
        keep_labels(images, 101, seed=0)


def test_subset_keeps_the_order_asked_for():
    images = many()
    part = subset(subset(images, [9, 4, 7, 4]), [3, 0])
    np.testing.assert_array_equal(part.pixels[np.array([1, 0])], images.pixels[np.array([9, 4])])
    assert part.labels.tolist() == images.labels[[4, 9]].tolist()
    with pytest.raises(UserError, match="sample 350"):
        subset(images, [350])


def test_cifar10_as_published():
    folder = SHARED / "data" / "cifar10"
    if not folder.exists():
        pytest.skip("the shared copy of CIFAR-10 is not on this machine")
    images = load(splits_of(folder)["test"], spare=NO_ROOM)
    assert images.pixels.shape == (10000, 32, 32, 3)
    assert np.bincount(images.labels).tolist() == [1000] * 10
    assert images.classes[0] == "airplane"
    assert 110 < images.pixels[:500].mean() < 130


def test_a_hidden_folder_is_no_class(tmp_path):
    for name in ("cat", "dog", ".ipynb_checkpoints"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "train" / name / "a.png")
    assert load_splits({"train": str(tmp_path / "train")}, cache=tmp_path / "cache")["train"].classes == ("cat", "dog")
