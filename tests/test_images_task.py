"""Batches of images: what a model sees of them, and that a batch is a pure function of its rows.

Shapes: B batch, C channels, H height, W width, K classes.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgestill.data.images import Images
from edgestill.data.views import augment
from edgestill.models import ImageInput
from edgestill.tasks.images import Views, batch, prepare, statistics

N, SIDE, K = 60, 8, 4
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")


def images(channels: int = 3) -> Images:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (N, SIDE, SIDE, channels), dtype=np.uint8)
    labels = np.where(np.arange(N) % 5 == 4, -1, np.arange(N) % K)
    return Images(pixels, labels, tuple("abcd"), "", "noise")


def plain(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    return ((pixels.astype(np.float64) / 255 - mean) / std).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (3, ImageInput(3, SIDE, MEAN, STD)),
        (1, ImageInput(1, SIDE, (0.5,), (0.2,))),
        (1, ImageInput(3, SIDE, MEAN, STD)),
        (3, ImageInput(3, SIDE, (0.5,), (0.2,))),
    ],
)
def test_pixels_are_normalised_channel_by_channel(channels, expected):
    pixels = images(channels).pixels
    prepared = prepare(torch.from_numpy(pixels), expected)
    assert prepared.dtype == torch.float32
    assert prepared.shape == (N, expected.channels, SIDE, SIDE)
    np.testing.assert_allclose(prepared.numpy(), plain(pixels, expected.mean, expected.std), rtol=1e-5, atol=1e-5)


def test_one_grey_channel_spreads_over_three_that_are_normalised_alike():
    pixels = images(1).pixels
    prepared = prepare(torch.from_numpy(pixels), ImageInput(3, SIDE, (0.5,), (0.2,)))
    assert prepared.shape == (N, 3, SIDE, SIDE)
    for channel in range(3):
        np.testing.assert_allclose(prepared[:, channel], plain(pixels, (0.5,), (0.2,))[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [5, 8, 16])
def test_images_are_resized_to_what_the_model_sees(size):
    pixels = torch.from_numpy(images().pixels)
    prepared = prepare(pixels, ImageInput(3, size, MEAN, STD))
    resized = torch.from_numpy(plain(pixels.numpy(), MEAN, STD))
    if size != SIDE:
        resized = functional.interpolate(resized, (size, size), mode="bilinear", antialias=True)
    torch.testing.assert_close(prepared.double(), resized, rtol=1e-4, atol=1e-5)
    constant = prepare(torch.full((1, SIDE, SIDE, 3), 51, dtype=torch.uint8), ImageInput(3, size, MEAN, STD))
    torch.testing.assert_close(constant.amax((2, 3)), constant.amin((2, 3)))
    torch.testing.assert_close(constant[0, :, 0, 0], torch.tensor([-1.5, -0.8, -1 / 3]))


def test_images_that_are_not_square_are_brought_to_a_square():
    pixels = torch.zeros(2, 6, 9, 3, dtype=torch.uint8)
    assert prepare(pixels, ImageInput(3, 6, MEAN, STD)).shape == (2, 3, 6, 6)


@pytest.mark.parametrize("size", [SIDE, 16])
@pytest.mark.parametrize(("channels", "mean", "std"), [(3, MEAN, STD), (1, MEAN, STD), (1, (0.5,), (0.2,))])
def test_inputs_are_channels_last_in_memory(size, channels, mean, std):
    prepared = prepare(torch.from_numpy(images(channels).pixels), ImageInput(3, size, mean, std))
    assert prepared.is_contiguous(memory_format=torch.channels_last)


def test_preparing_leaves_the_pixels_as_they_are():
    pixels = torch.from_numpy(images().pixels)
    before = pixels.clone()
    prepare(pixels, ImageInput(3, SIDE, MEAN, STD))
    assert torch.equal(pixels, before)


EVERYTHING = Views(crop=2, flip=True, policy="strong")


@pytest.mark.parametrize("views", [Views(), EVERYTHING, Views(mixup=0.4), Views(2, True, "strong", mixup=1.0)])
def test_a_row_depends_on_seed_epoch_and_index_alone(views):
    data, indices, epochs = images(), np.arange(N)[::3], np.arange(N)[::3] % 4
    whole = batch(data, indices, epochs, views, seed=1)
    order = np.random.default_rng(0).permutation(len(indices))
    moved = batch(data, indices[order], epochs[order], views, seed=1)
    assert torch.equal(moved.pixels, whole.pixels[order])
    assert torch.equal(moved.labels, whole.labels[order])
    for row in (0, 7):
        alone = batch(data, indices[row : row + 1], epochs[row : row + 1], views, seed=1)
        assert torch.equal(alone.pixels[0], whole.pixels[row])
        assert torch.equal(alone.labels[0], whole.labels[row])


@pytest.mark.parametrize("views", [EVERYTHING, Views(mixup=1.0)])
def test_seed_and_epoch_change_the_views(views):
    data, indices, epochs = images(), np.arange(N), np.zeros(N, dtype=np.int64)
    first = batch(data, indices, epochs, views, seed=0).pixels
    for other in (batch(data, indices, epochs, views, seed=1), batch(data, indices, epochs + 1, views, seed=0)):
        assert not torch.equal(other.pixels, first)


def test_a_batch_has_the_views_and_labels_of_its_indices():
    data, indices, epochs = images(), np.array([9, 3, 3, 41]), np.array([0, 0, 1, 2])
    made = batch(data, indices, epochs, EVERYTHING, seed=3)
    views = augment(data.pixels[indices], indices, seed=3, epoch=epochs, crop=2, flip=True, policy="strong")
    np.testing.assert_array_equal(made.pixels.numpy(), views)
    assert made.pixels.dtype == torch.uint8
    assert made.labels.tolist() == [-1, 3, 3, 1]
    assert made.mask is None
    np.testing.assert_array_equal(made.indices, indices)


def test_teacher_and_student_see_the_same_view_each_in_its_own_normalisation():
    made = batch(images(), np.arange(4), np.zeros(4, dtype=np.int64), EVERYTHING, seed=0)
    for expected in (ImageInput(3, SIDE, MEAN, STD), ImageInput(3, 16, (0.0,), (1.0,))):
        assert torch.equal(made.inputs(expected, CPU), prepare(made.pixels, expected))


def test_mixup_blends_two_views_and_their_labels_in_one_share():
    data, indices, epochs = images(), np.arange(N), np.zeros(N, dtype=np.int64)
    made = batch(data, indices, epochs, Views(flip=True, mixup=1.0), seed=0)
    own = batch(data, indices, epochs, Views(flip=True), seed=0)
    views = own.pixels.double().flatten(1)
    shares, partners = [], []
    for row in range(N):
        rest = made.pixels[row].double().flatten() - views  # for the true partner: a multiple of own − partner
        direction = views[row] - views
        share = (rest * direction).sum(1) / direction.square().sum(1).clamp(min=1)
        miss = (rest - share[:, None] * direction).abs().amax(1)
        partners.append(int(miss.argmin()))
        shares.append(float(share[partners[-1]]) if partners[-1] != row else 1.0)
        assert miss.min() < 1e-3
    labels = data.labels
    hot = np.eye(K)[np.maximum(labels, 0)]
    share = np.array(shares)[:, None]
    assert (np.array(partners) != indices).mean() > 0.9
    assert share.min() >= 0
    assert share.max() <= 1
    rows = np.array(partners) != indices  # a partner that is the sample itself has any share
    expected = share * hot + (1 - share) * hot[partners]
    np.testing.assert_allclose(made.labels.numpy()[rows], expected[rows], atol=1e-4)
    np.testing.assert_array_equal(made.mask.numpy(), (labels >= 0) & (labels[partners] >= 0))


def test_mixed_labels_are_probabilities():
    made = batch(images(), np.arange(N), np.zeros(N, dtype=np.int64), Views(mixup=0.3), seed=5)
    assert made.labels.shape == (N, K)
    assert made.labels.min() >= 0
    torch.testing.assert_close(made.labels.sum(1), torch.ones(N))
    assert 0 < made.mask.sum() < N
    assert made.pixels.min() >= 0
    assert made.pixels.max() <= 255.001  # float32
    expected = ImageInput(3, SIDE, MEAN, STD)
    np.testing.assert_allclose(
        made.inputs(expected, CPU).numpy(), plain(made.pixels.numpy(), MEAN, STD), rtol=1e-4, atol=1e-4
    )


def test_statistics_are_those_of_the_pixels_channel_by_channel():
    data = images()
    mean, std = statistics(data)
    shares = data.pixels.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, shares.mean(0), atol=5e-5)
    np.testing.assert_allclose(std, shares.std(0), atol=5e-5)
    np.testing.assert_allclose(statistics(data, limit=1)[0], data.pixels[0].reshape(-1, 3).mean(0) / 255, atol=5e-5)


def test_a_constant_channel_can_be_normalised():
    blank = Images(np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3, np.int64), ("a",), "", "blank")
    mean, std = statistics(blank)
    assert std[0] > 0
    assert torch.isfinite(prepare(torch.from_numpy(blank.pixels), ImageInput(1, 4, mean, std))).all()


def test_mixup_keeps_every_label_to_learn_from():
    """With few labels a random partner rarely has one: a labelled sample is mixed with a labelled one."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 4, 4, 1), dtype=np.uint8)
    labels = np.where(np.arange(100) % 10 == 0, np.arange(100) % 3, -1)
    images = Images(pixels, labels, ("a", "b", "c"), "f", "test")
    rows = np.arange(100)
    mixed = batch(images, rows, np.zeros(100, np.int64), Views(mixup=0.4), seed=0)
    assert mixed.mask.tolist() == (labels >= 0).tolist()
