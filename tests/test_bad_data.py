"""Data with mistakes in it: each gives the right result or is refused in one line, before any work."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from edgestill.cli import main
from edgestill.data.images import Images
from edgestill.data.sources import load_splits, splits_of
from edgestill.errors import UserError
from image_files import NAMES, encode, noise, write

BROKEN = (3, 7)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))


def load(spec: object, **options) -> Images:
    return load_splits({"train": spec}, **options)["train"]


def refused(spec: object, **options) -> str:
    """The one line that a split is refused with."""
    with pytest.raises(UserError) as error:
        load(spec, **options).pixels[:]
    assert "\n" not in str(error.value)
    return str(error.value)


def files(count: int, broken: tuple[int, ...] = (), **options) -> tuple[list[bytes], list[int]]:
    """Encoded images, some of them cut in half, and their labels."""
    encoded = [encode(image) for image in noise(count, 20, 20, **options)]
    return [data[: len(data) // 2] if row in broken else data for row, data in enumerate(encoded)], [
        row % 3 for row in range(count)
    ]


# --- every form of source; rows are in the order of the files' names, so that row r has the label r % 3 or r // 4


def as_parquet(at: Path, encoded: list[bytes], labels: list[int]) -> str:
    return str(write(at / "a.parquet", encoded, labels))


def as_shards(at: Path, encoded: list[bytes], labels: list[int]) -> str:
    for number, rows in enumerate((slice(0, 5), slice(5, None))):
        write(at / "data" / f"train-0000{number}-of-00002.parquet", encoded[rows], labels[rows])
    write(at / "data" / "test-00000-of-00001.parquet", encoded[:1], labels[:1])
    return splits_of(at)["train"]


def as_image_files(at: Path, encoded: list[bytes]) -> list[str]:
    (at / "images").mkdir(parents=True)
    for row, data in enumerate(encoded):
        (at / "images" / f"{row:02}.png").write_bytes(data)
    return [f"images/{row:02}.png" for row in range(len(encoded))]


def as_csv(at: Path, encoded: list[bytes], labels: list[int]) -> str:
    paths = as_image_files(at, encoded)
    lines = [f"{path},{NAMES[label]}" for path, label in zip(paths, labels, strict=True)]
    (at / "list.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    return str(at / "list.csv")


def as_jsonl(at: Path, encoded: list[bytes], labels: list[int]) -> str:
    rows = zip(as_image_files(at, encoded), labels, strict=True)
    lines = [json.dumps({"file_name": path, "label": label}) for path, label in rows]
    (at / "list.jsonl").write_text("\n".join(lines))
    return str(at / "list.jsonl")


def as_folder(at: Path, encoded: list[bytes], labels: list[int]) -> str:
    """Class folders, whose order the rows of the other forms are brought to."""
    for row, (data, label) in enumerate(zip(encoded, labels, strict=True)):
        (at / NAMES[label]).mkdir(parents=True, exist_ok=True)
        (at / NAMES[label] / f"{row:02}.png").write_bytes(data)
    return str(at)


SOURCES = [as_parquet, as_shards, as_csv, as_jsonl, as_folder]


@pytest.mark.parametrize("make", SOURCES)
def test_a_broken_image_stops_with_its_row(tmp_path, make: Callable):
    encoded, _ = files(10, BROKEN)
    line = refused(make(tmp_path / "data", encoded, [row // 4 for row in range(10)]))
    assert "row 3 of " in line
    assert "set data.on_error to skip" in line


@pytest.mark.parametrize("make", SOURCES)
def test_a_broken_image_is_skipped_as_if_the_data_were_without_it(tmp_path, make: Callable):
    encoded, _ = files(10, BROKEN)
    labels = [row // 4 for row in range(10)]
    spec = make(tmp_path / "data", encoded, labels)
    kept = [row for row in range(10) if row not in BROKEN]
    pixels = noise(10, 20, 20)
    loads = [
        load(spec, on_error="skip", workers=workers, cache=tmp_path / f"cache{where}")
        for workers, where in ((0, 0), (1, 1), (3, 2), (3, 0))  # the last from a cache that is warm
    ]
    for images in loads:
        np.testing.assert_array_equal(images.pixels[:], pixels[kept])
        assert images.labels.tolist() == [labels[row] for row in kept]
        assert [name.split(" of ")[0] for name in images.skipped] == ["row 3", "row 7"]
        assert images.fingerprint == loads[0].fingerprint
    clean = load(str(write(tmp_path / "clean.parquet", [encoded[row] for row in kept], loads[0].labels.tolist())))
    assert loads[0].fingerprint == clean.fingerprint
    assert clean.skipped == ()


def test_on_demand_pixels_and_later_messages_count_the_rows_that_were_left_out(tmp_path):
    encoded, labels = files(10, BROKEN)
    spec = as_parquet(tmp_path, encoded, labels)
    images = load(spec, on_error="skip", spare=2**62)
    np.testing.assert_array_equal(images.pixels[:], np.delete(noise(10, 20, 20), BROKEN, axis=0))
    labels[8] = 5
    assert "row 8 has 5" in refused(as_parquet(tmp_path, encoded, labels), on_error="skip")


def test_a_missing_file_and_a_missing_image_are_named_or_skipped(tmp_path):
    encoded, labels = files(6)
    spec = as_csv(tmp_path, encoded, labels)
    (tmp_path / "images" / "02.png").unlink()
    line = refused(spec)
    assert "row 2 of " in line
    assert "images/02.png): [Errno 2] No such file" in line
    images = load(spec, on_error="skip")
    assert images.labels.tolist() == [0, 1, 0, 1, 2]
    (named,) = images.skipped
    assert named.startswith("row 2 of ")
    (tmp_path / "images" / "02.png").write_bytes(encoded[2])  # mended: nothing remembered may answer for it
    assert load(spec, on_error="skip").skipped == ()

    nulls = write(tmp_path / "nulls.parquet", [encoded[0], None, encoded[2]], [0, 1, 2])
    parquet.write_table(_without_paths(parquet.read_table(nulls)), nulls)
    assert "row 1 of " in refused(str(nulls))
    assert load(str(nulls), on_error="skip").labels.tolist() == [0, 2]


def _without_paths(table: pa.Table) -> pa.Table:
    column = table.column("image").combine_chunks()
    bare = pa.StructArray.from_arrays([column.field("bytes"), pa.nulls(len(column), pa.string())], ["bytes", "path"])
    return table.set_column(0, "image", bare)


def test_an_image_of_a_depth_that_is_not_read_is_left_out_as_well(tmp_path):
    (tmp_path / "x").mkdir()
    image_file(tmp_path / "x" / "a.png", "RGB")
    Image.new("F", (8, 8)).save(tmp_path / "x" / "b.tiff")
    assert "row 1 of " in refused(tmp_path / "x")
    assert len(load(tmp_path / "x", on_error="skip")) == 1


def test_nothing_but_broken_images_is_refused(tmp_path):
    encoded, labels = files(4, (0, 1, 2, 3))
    assert "none of its 4 can be decoded" in refused(as_parquet(tmp_path, encoded, labels), on_error="skip")


# --- files that are broken as a whole


def test_a_corrupt_parquet_is_named(tmp_path):
    whole = Path(as_parquet(tmp_path, *files(50))).read_bytes()
    page = bytearray(whole)
    page[4:60] = b"\xff" * 56  # the first page's header; the magic and the footer are good
    for name, content in {
        "truncated": whole[: len(whole) // 2],
        "garbage": np.random.default_rng(0).bytes(4000),
        "empty": b"",
        "page": bytes(page),
        "cut-before-footer": whole[:-8],
    }.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
        assert refused(tmp_path / f"{name}.parquet").startswith(f"{tmp_path / name}.parquet cannot be read")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "", "needs a column 'image', 'img', 'file_name'; its columns are none"),
        ("a.csv", "image,label\n", "needs images"),
        ("a.csv", "path,label\nx.png,0\n", "its columns are path, label"),
        ("a.csv", "image,label,label\nx.png,0,1\n", "'label' stands there twice"),
        ("a.csv", "image,label\nx.png\n", "line 2 needs 2 cells"),
        ("a.csv", "image,label\nx.png,0.5\n", "row 0 has '0.5'"),
        ("a.csv", "image,label\nx.png,0\ny.png,nan\n", "row 1 has 'nan'"),
        ("a.csv", "image,label\nx.png,0\ny.png,-3\n", "row 1 has -3"),
        ("a.csv", 'image,label\n"x.png,0\n', "cannot be read as csv: line 2"),
        ("a.jsonl", '{"image": "x.png"}\n{\n', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 needs to be a JSON object; list came"),
        ("a.jsonl", '{"image": 3, "label": 1}\n', "row 0 has 3"),
        ("a.jsonl", '{"image": "x.png", "label": 1.5}\n', "row 0 has 1.5"),
        ("a.jsonl", '{"image": "x.png", "label": "a"}\n{"image": "y.png", "label": 1}\n', "row 1 has 1"),
        ("a.jsonl", '{"image": "x.png", "label": true}\n', "row 0 has True"),
    ],
)
def test_a_list_with_a_mistake_is_refused(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    assert said in refused(tmp_path / name)


def test_a_list_may_have_empty_labels_blank_lines_and_a_byte_order_mark(tmp_path):
    as_image_files(tmp_path, files(3)[0])
    (tmp_path / "a.csv").write_text("\ufeffimage,label\nimages/00.png,dog\n\nimages/01.png,\nimages/02.png,cat\n")
    images = load(tmp_path / "a.csv")
    assert images.labels.tolist() == [1, -1, 0]
    assert images.classes == ("cat", "dog")
    (tmp_path / "b.csv").write_bytes(b"image,label\nimages/\xff.png,dog\n")
    assert "cannot be read as UTF-8" in refused(tmp_path / "b.csv")


def test_a_folder_with_a_loading_script_is_never_run(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')\n")
    with pytest.raises(UserError, match="no train and no test split"):
        splits_of(tmp_path / "set")
    assert "needs images" in refused(tmp_path / "set")
    assert not (tmp_path / "was run").exists()


# --- labels and classes


def table(path: Path, labels: pa.Array, names: tuple[str, ...] | None = None, twice: str | None = None) -> str:
    """A parquet file whose label column is as given; one column stands there twice."""
    write(path, files(len(labels))[0], None)
    held = parquet.read_table(path)
    feature = {"_type": "ClassLabel", "names": names} if names else {"_type": "Value", "dtype": str(labels.type)}
    metadata = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": feature}}})}
    held = held.append_column("label", labels)
    held = held.append_column(twice, held.column(twice)) if twice else held
    parquet.write_table(held.replace_schema_metadata(metadata), path)
    return str(path)


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        (pa.array([0, 1, 2, 9]), NAMES, r"0…2 (3 classes) or missing (-1); row 3 has 9"),
        (pa.array([0, -2, 2, 1]), NAMES, "row 1 has -2"),
        (pa.array([0.0, 1.0, 0.0, 1.0]), None, "whole numbers or class names; it has double"),
        (pa.array([0.0, float("nan"), 0.0, 1.0]), None, "it has double"),
        (pa.array([2**63, 1, 0, 1], pa.uint64()), None, "has no class numbers"),
        (pa.array([True, False, True, True]), None, "it has bool"),
        (pa.array([[0], [1], [0], [1]]), None, "list<"),
        (pa.array([0, 1, 1, 0]), ("cat", "cat"), "cat"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, names, said):
    assert said in refused(table(tmp_path / "a.parquet", labels, names))


def test_labels_of_text_are_class_names(tmp_path):
    images = load(table(tmp_path / "a.parquet", pa.array(["fox", "cat", None, "fox"])))
    assert images.classes == ("cat", "fox")
    assert images.labels.tolist() == [1, 0, -1, 1]
    test = table(tmp_path / "b.parquet", pa.array(["fox", "cta", "fox", "fox"]))
    with pytest.raises(
        UserError, match=r"has the class 'cta', which .*a\.parquet lacks; it has 'cat', 'fox'.*mean 'cat'"
    ):
        load_splits({"train": str(tmp_path / "a.parquet"), "test": test})


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_column_that_stands_there_twice_is_refused(tmp_path, column):
    said = refused(table(tmp_path / "a.parquet", pa.array([0, 1, 0]), twice=column))
    assert f"{column!r} stands there twice" in said


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (([[1, 2], [3]], [0, 1]), "an array of images"),
        ((noise(2), 3), "a list of labels"),
        ((noise(2), [0, 2**70]), "row 1 has"),
        ((noise(2), [0, 1], ("cat", "cat")), "'cat' stands there twice"),
        ((noise(2), ["cat", "fish"], NAMES), "row 1 has 'fish'"),
        ((noise(2), [0, float("nan")]), "row 1 has nan"),
    ],
)
def test_arrays_with_a_mistake_are_refused(split, said):
    assert said in refused(split)


def test_classes_of_another_order_are_matched_by_name(tmp_path):
    train = table(tmp_path / "a.parquet", pa.array([0, 1, 2]), NAMES)
    test = table(tmp_path / "b.parquet", pa.array([0, 1, 2]), ("fox", "dog", "cat"))
    assert load_splits({"train": train, "test": test})["test"].labels.tolist() == [2, 1, 0]


# --- images of every kind


def image_file(path: Path, mode: str, size: tuple[int, int] = (8, 8)) -> None:
    kind = {"CMYK": "JPEG"}.get(mode, "PNG")
    if mode == "I;16":
        image = Image.fromarray(np.full((size[1], size[0]), 257 * 90, np.uint16))
    elif mode == "transparent P":
        image = Image.new("RGBA", size, (90, 90, 90, 0)).quantize(4)
    else:
        colour = {"L": 90, "LA": (90, 0), "RGB": (90,) * 3, "RGBA": (90, 90, 90, 0), "CMYK": (0, 0, 0, 165), "1": 1}
        image = Image.new(mode, size, colour[mode])
    image.save(path, kind)


def test_grey_transparent_deep_and_cmyk_images_stand_among_colour_ones(tmp_path):
    (tmp_path / "x").mkdir()
    modes = ["RGB", "L", "LA", "RGBA", "transparent P", "I;16", "CMYK", "1"]
    for place, mode in enumerate(modes):
        image_file(tmp_path / "x" / f"{place}.img.{'jpg' if mode == 'CMYK' else 'PNG'}", mode)
    pixels = load(tmp_path / "x").pixels[:]
    assert pixels.shape == (8, 8, 8, 3)
    values = [sorted({*image.ravel().tolist()}) for image in pixels]
    assert values[:6] == [[90], [90], [255], [255], [255], [90]]
    assert abs(values[6][0] - 90) <= 2  # a JPEG
    assert values[7] == [255]


def test_many_sizes_and_kinds_with_data_size(tmp_path):
    (tmp_path / "x").mkdir()
    for place, (mode, size) in enumerate({"RGB": (9, 30), "L": (31, 7), "RGBA": (8, 8), "I;16": (1, 40)}.items()):
        image_file(tmp_path / "x" / f"{place}.png", mode, size)
    assert "data.size to bring them to" in refused(tmp_path / "x")
    assert load(tmp_path / "x", size=8).pixels[:].shape == (4, 8, 8, 3)


def test_stray_files_of_an_image_folder_are_passed_over(tmp_path):
    at = tmp_path / "x"
    as_folder(at, *files(6))
    for stray in ("Thumbs.db", ".DS_Store", "README.txt", "cat/Thumbs.db", "dog/.DS_Store", "dog/notes.txt"):
        (at / stray).write_bytes(b"not an image")
    for folder in ("owl", ".git", "__MACOSX", "cat/.thumbs", "cat/persian/old", "dog/looks-like.png"):
        (at / folder).mkdir(parents=True)
    (at / "__MACOSX" / "._a.png").write_bytes(b"x")
    (at / "cat" / ".thumbs" / "a.png").write_bytes(b"x")
    (at / "cat" / "00.png").rename(at / "cat" / "persian" / "old" / "A.PNG")
    images = load(at)
    assert images.classes == NAMES
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]


# --- whole runs


def few(at: Path, split: str, classes: tuple[str, ...] = NAMES, each: int = 16, broken: int = 0) -> str:
    """Class folders of grey images, each class of its own brightness."""
    noisy = np.random.default_rng(len(split)).integers(0, 60, (len(classes), each, 8, 8), dtype=np.uint8)
    for name, images in zip(classes, noisy, strict=True):
        (at / split / name).mkdir(parents=True)
        for place, image in enumerate(images):
            data = encode(image[..., None] + np.uint8(60 * NAMES.index(name) if name in NAMES else 0))
            (at / split / name / f"{place:02}.png").write_bytes(data[: len(data) // (2 if place < broken else 1)])
    return str(at / split)


def run(tmp_path: Path, data: dict, *arguments: str) -> int:
    settings = [f"data={json.dumps({'validation': 0.25} | data)}", "teacher.fit.epochs=20", "train.epochs=40",
                "compare.seeds=1", "train.lr=0.01"]  # fmt: skip
    overrides = [part for setting in settings for part in ("--set", setting)]
    return main(["train", "digits", "--out", str(tmp_path / "run"), *overrides, *arguments])


def test_a_run_counts_what_it_left_out_and_reports_a_class_that_the_test_set_lacks(tmp_path, capsys, caplog):
    data = {"train": few(tmp_path, "train", broken=1), "test": few(tmp_path, "test", ("cat", "fox"))}
    with caplog.at_level(logging.WARNING, "edgestill"):
        assert run(tmp_path, data | {"on_error": "skip"}) == 0
    (said,) = caplog.messages
    assert said.startswith("edgestill: 3 broken images of the train split are left out: row 0 of ")
    assert "left out 3 broken images of the train split" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["data"] == {"train": 34, "labelled": 34, "validation": 11, "test": 32, "skipped": {"train": 3}}
    assert result["classes"] == list(NAMES)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "left out of train" in page
    assert "nan" not in page.split("<main")[-1].lower().split()


def one_class(at: Path) -> dict:
    return {"train": few(at, "train", ("cat",)), "test": few(at, "test", ("cat",))}


def no_images(at: Path) -> dict:
    (at / "empty").mkdir()
    return {"train": few(at, "train"), "test": str(at / "empty")}


def empty_parquet(at: Path) -> dict:
    return {"train": str(write(at / "a.parquet", [], [])), "test": few(at, "test")}


def no_label_column(at: Path) -> dict:
    return {
        "train": few(at, "train"),
        "test": str(write(at / "a.parquet", [encode(i) for i in noise(3, 8, 8, 1)], None)),
    }


def no_label_column_in_training(at: Path) -> dict:
    named = no_label_column(at)
    return {"train": named["test"], "test": named["train"]}


def class_of_the_test_set_alone(at: Path) -> dict:
    return {"train": few(at, "train", ("cat", "dog")), "test": few(at, "test", ("cat", "dgo"))}


def unseen_class(at: Path) -> dict:
    train, test = (write(at / f"{name}.parquet", *files(12)) for name in ("train", "test"))
    return {"train": str(write(train, files(12)[0], [0, 1] * 6)), "test": str(test)}


def unseen_class_beside_missing_labels(at: Path) -> dict:
    train, test = (write(at / f"{name}.parquet", *files(12)) for name in ("train", "test"))
    return {"train": str(write(train, files(12)[0], [0, 1, -1] * 4)), "test": str(test)}


def same_split(at: Path) -> dict:
    return {"train": few(at, "train"), "test": str(at / "train")}


def same_validation(at: Path) -> dict:
    test = few(at, "test")
    return {"train": few(at, "train"), "test": test, "validation": test}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (one_class, "at least two classes are needed; there is 'cat'"),
        (no_images, "the test split needs images"),
        (empty_parquet, "the train split needs images"),
        (no_label_column, "the test split has no labels"),
        (no_label_column_in_training, "a.parquet needs a column 'label'"),
        (class_of_the_test_set_alone, "has the class 'dgo', which"),
        (unseen_class, "has samples of the class 'fox', and none is labelled so in the training split"),
        (unseen_class_beside_missing_labels, "has samples of the class 'fox', and none is labelled so"),
        (same_split, "train and test are the same 48 samples"),
        (same_validation, "validation and test are the same 48 samples"),
    ],
)
def test_a_run_on_data_with_a_mistake_is_refused_in_one_line_before_anything_is_written(tmp_path, capsys, make, said):
    assert run(tmp_path, make(tmp_path), "--quiet") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()


def test_a_link_to_an_image_that_is_gone_is_a_missing_image(tmp_path):
    for name, image in zip("abcd", noise(4, 8, 8, 3), strict=True):
        (tmp_path / "set" / "cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "cat" / f"{name}.png").write_bytes(encode(image))
    (tmp_path / "set" / "cat" / "b.png").unlink()
    (tmp_path / "set" / "cat" / "b.png").symlink_to(tmp_path / "unmounted" / "b.png")
    assert "row 1 of" in refused(str(tmp_path / "set"))
    assert len(load(str(tmp_path / "set"), on_error="skip").skipped) == 1


def test_what_is_no_image_is_said_without_an_object_in_memory(tmp_path):
    encoded, labels = files(3)
    said = refused(str(write(tmp_path / "a.parquet", [b"garbage", *encoded[1:]], labels)))
    assert "row 0" in said
    assert "no image of a known format" in said
    assert "0x" not in said
