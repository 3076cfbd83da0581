"""Views are pure functions of (seed, epoch, index)."""

import numpy as np
import pytest

from edgestill.data.views import augment, uniform
from edgestill.errors import UserError

B, SIDE = 256, 12
INDICES = np.arange(B) * 3
PIXELS = np.random.default_rng(0).integers(1, 256, (B, SIDE, SIDE, 3), dtype=np.uint8)
EVERYTHING = {"crop": 2, "flip": True, "policy": "strong"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [{"crop": 2}, {"flip": True}, {"policy": "strong"}, EVERYTHING])
def test_a_view_does_not_depend_on_the_rest_of_the_batch_or_on_its_place(options, channels):
    pixels = PIXELS[..., :channels]
    whole = augment(pixels, INDICES, seed=5, epoch=2, **options)
    order = np.random.default_rng(1).permutation(B)
    np.testing.assert_array_equal(augment(pixels[order], INDICES[order], seed=5, epoch=2, **options), whole[order])
    for row in (0, 17, B - 1):
        alone = augment(pixels[row : row + 1], INDICES[row : row + 1], seed=5, epoch=2, **options)
        np.testing.assert_array_equal(alone[0], whole[row])
    assert whole.shape == pixels.shape
    assert whole.dtype == np.uint8


def test_an_epoch_a_row_equals_that_epoch_for_the_batch():
    epochs = np.arange(B) % 3
    mixed = augment(PIXELS, INDICES, seed=0, epoch=epochs, **EVERYTHING)
    for epoch in range(3):
        single = augment(PIXELS, INDICES, seed=0, epoch=epoch, **EVERYTHING)
        np.testing.assert_array_equal(mixed[epochs == epoch], single[epochs == epoch])


@pytest.mark.parametrize("options", [{"crop": 2}, {"flip": True}, {"policy": "strong"}])
def test_seed_epoch_and_index_each_change_the_views(options):
    first = augment(PIXELS, INDICES, seed=0, epoch=0, **options)
    for other in (
        augment(PIXELS, INDICES, seed=1, epoch=0, **options),
        augment(PIXELS, INDICES, seed=0, epoch=1, **options),
        augment(PIXELS, INDICES + 1, seed=0, epoch=0, **options),
    ):
        assert (other != first).any(axis=(1, 2, 3)).mean() > 0.3


def test_a_crop_is_a_window_of_the_image_within_a_border_of_zeros():
    crop = 2
    views = augment(PIXELS, INDICES, seed=0, epoch=0, crop=crop)
    padded = np.pad(PIXELS, ((0, 0), (crop, crop), (crop, crop), (0, 0)))
    seen = set()
    for image, view in zip(padded, views, strict=True):
        places = [
            (down, across)
            for down in range(2 * crop + 1)
            for across in range(2 * crop + 1)
            if (image[down : down + SIDE, across : across + SIDE] == view).all()
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == (2 * crop + 1) ** 2


def test_half_of_the_images_are_mirrored():
    views = augment(PIXELS, INDICES, seed=0, epoch=0, flip=True)
    mirrored = (views == PIXELS[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((views == PIXELS).all(axis=(1, 2, 3)) ^ mirrored).all()
    assert 0.4 < mirrored.mean() < 0.6


def test_flip_leaves_the_crop_as_it_is():
    crop = augment(PIXELS, INDICES, seed=0, epoch=0, crop=2)
    both = augment(PIXELS, INDICES, seed=0, epoch=0, crop=2, flip=True)
    same = (both == crop).all(axis=(1, 2, 3))
    assert 0.4 < same.mean() < 0.6


def test_without_options_a_view_is_the_image():
    np.testing.assert_array_equal(augment(PIXELS, INDICES, seed=0, epoch=0), PIXELS)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_strong_policy_changes_most_images_and_not_its_input(channels):
    pixels = PIXELS[..., :channels].copy()
    views = augment(pixels, INDICES, seed=0, epoch=0, policy="strong")
    np.testing.assert_array_equal(pixels, PIXELS[..., :channels])
    assert 0.7 < (views != pixels).any(axis=(1, 2, 3)).mean() < 1
    assert (views == 0).any(axis=(1, 2, 3)).mean() > 0.4


def test_a_policy_may_be_a_function():
    views = augment(PIXELS, INDICES, seed=0, epoch=0, policy=lambda pixels, indices, *, seed, epoch: 255 - pixels)
    np.testing.assert_array_equal(views, 255 - PIXELS)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="did you mean 'strong'"):
        augment(PIXELS, INDICES, seed=0, epoch=0, policy="stronk")
    with pytest.raises(UserError, match="-1 came"):
        augment(PIXELS, INDICES, seed=0, epoch=0, crop=-1)


def test_uniform_numbers_are_uniform_and_uncorrelated():
    draws = uniform(3, 7, np.arange(50000), 4)
    assert draws.dtype == np.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.stack([np.histogram(column, bins=20, range=(0, 1))[0] for column in draws.T])
    # 19 degrees of freedom: 43.8 is exceeded once in a thousand; the numbers are fixed, so this cannot flicker.
    assert (((counts - 2500) ** 2 / 2500).sum(axis=1) < 43.8).all()
    neighbours = np.concatenate([draws[1:], draws[:-1], uniform(3, 8, np.arange(49999), 4)], axis=1)
    assert np.abs(np.corrcoef(neighbours.T) - np.eye(12)).max() < 0.02


def test_a_draw_does_not_depend_on_how_many_are_asked_for_and_streams_differ():
    few, many = uniform(0, 0, INDICES, 2), uniform(0, 0, INDICES, 9)
    np.testing.assert_array_equal(few, many[:, :2])
    assert not np.isin(uniform(0, 0, INDICES, 9, stream=5), many).any()


def test_the_numbers_stay_the_same_for_ever():
    """Saved runs resume with them: a change here breaks every one."""
    expected = [[0.48466776139532897, 0.38631458158071896], [0.675966756640919, 0.7362116981152766]]
    np.testing.assert_allclose(uniform(1, 2, [3, 4], 2), expected, rtol=0, atol=0)
