"""Which samples a step draws: pure functions of (seed, step)."""

import numpy as np
import pytest

from edgestill.data.curriculum import draw, draw_easiest, ranks_within_class

POOL = np.array([3, 5, 8, 13, 21, 34, 55])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 10, 20])
def test_the_stream_has_every_sample_once_an_epoch(batch_size):
    steps = 7 * 3  # three times the pool, whatever the batch size
    drawn = [draw(step, POOL, batch_size, seed=0) for step in range(steps)]
    indices, epochs = (np.concatenate(column) for column in zip(*drawn, strict=True))
    assert len(indices) == steps * batch_size
    np.testing.assert_array_equal(epochs, np.repeat(np.arange(3 * batch_size), 7))
    for epoch in np.unique(epochs):
        np.testing.assert_array_equal(np.sort(indices[epochs == epoch]), POOL)


def test_a_draw_depends_on_seed_and_step_alone():
    expected = [draw(step, POOL, 3, seed=1) for step in range(20)]
    for step in reversed(range(20)):
        for one, other in zip(draw(step, POOL, 3, seed=1), expected[step], strict=True):
            np.testing.assert_array_equal(one, other)
    assert any((draw(step, POOL, 3, seed=2)[0] != expected[step][0]).any() for step in range(20))


def test_epochs_have_orders_of_their_own():
    pool = np.arange(100)
    orders = [tuple(draw(epoch, pool, 100, seed=0)[0]) for epoch in range(5)]
    assert len(set(orders)) == 5
    assert tuple(pool) not in orders


def test_indices_are_whole_numbers_that_index_arrays():
    for indices, epochs in (draw(0, POOL, 3, 0), draw_easiest(0, np.linspace(0, 1, 9, endpoint=False), 0.5, 3, 0)):
        assert indices.dtype == np.int64
        assert epochs.dtype == np.int64
        assert indices.shape == epochs.shape == (3,)


def test_only_the_easiest_are_drawn_and_none_twice_in_a_batch():
    ranks = np.random.default_rng(0).permutation(100) / 100
    for step, admitted in enumerate((0.25, 0.5, 0.75, 1.0)):
        indices, _ = draw_easiest(step, ranks, admitted, 20, seed=0)
        assert (ranks[indices] < admitted).all()
        assert len(np.unique(indices)) == 20


def test_all_that_is_admitted_is_drawn_in_the_end_about_equally_often():
    ranks = np.arange(100) / 100
    counts = np.bincount(
        np.concatenate([draw_easiest(s, ranks, 0.5, 10, seed=0)[0] for s in range(500)]), minlength=100
    )
    assert (counts[50:] == 0).all()
    assert counts[:50].min() > 60  # 100 expected, with a deviation of 9
    assert counts[:50].max() < 140


def test_a_batch_larger_than_what_is_admitted_repeats():
    indices, _ = draw_easiest(0, np.arange(8) / 8, 0.25, 20, seed=0)
    assert set(indices) == {0, 1}
    assert len(indices) == 20


def test_an_easiest_first_draw_depends_on_seed_and_step_alone():
    ranks = np.arange(50) / 50
    expected = [draw_easiest(step, ranks, 0.5, 5, seed=1)[0] for step in range(10)]
    for step in reversed(range(10)):
        np.testing.assert_array_equal(draw_easiest(step, ranks, 0.5, 5, seed=1)[0], expected[step])
    assert len({tuple(indices) for indices in expected}) == 10
    assert any((draw_easiest(step, ranks, 0.5, 5, seed=2)[0] != expected[step]).any() for step in range(10))


def test_samples_drawn_again_get_new_views():
    """A quarter of the samples is drawn over and over: no pair of sample and epoch comes twice."""
    ranks = np.arange(40) / 40
    seen = [pair for step in range(12) for pair in zip(*draw_easiest(step, ranks, 0.25, 10, seed=0), strict=True)]
    assert len(set(seen)) == len(seen)


def test_ranks_order_each_class_by_itself():
    losses = np.array([0.5, 9.0, 0.1, 7.0, 0.3, 8.0, 0.2])
    classes = np.array([0, 1, 0, 1, 0, 1, 0])
    ranks = ranks_within_class(losses, classes)
    np.testing.assert_allclose(ranks, [3 / 4, 2 / 3, 0, 0, 2 / 4, 1 / 3, 1 / 4])


def test_the_easy_part_has_the_classes_of_the_whole():
    generator = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], [600, 300, 100])
    losses = generator.exponential(size=1000) * np.array([1.0, 5.0, 25.0])[classes]
    easy = ranks_within_class(losses, classes) < 0.25
    np.testing.assert_array_equal(np.bincount(classes[easy]), [150, 75, 25])
    for label in range(3):
        members = classes == label
        assert losses[members & easy].max() < losses[members & ~easy].min()


def test_equal_losses_keep_their_order():
    np.testing.assert_allclose(ranks_within_class(np.zeros(4), np.zeros(4, dtype=int)), [0, 0.25, 0.5, 0.75])
