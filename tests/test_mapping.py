"""Layer maps: which student tap learns from which teacher tap."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from edgestill.errors import UserError
from edgestill.mapping import layer_map, monotone_assignment


def teacher(count: int) -> list[str]:
    return [f"t{i}" for i in range(1, count + 1)]


def student(count: int) -> list[str]:
    return [f"s{i}" for i in range(1, count + 1)]


@pytest.mark.parametrize("kind", ["direct", "width", "depth"])
def test_as_many_taps_on_both_sides_are_paired_in_order(kind):
    assert layer_map(student(3), teacher(3), kind) == [("s1", "t1"), ("s2", "t2"), ("s3", "t3")]


@pytest.mark.parametrize(
    ("few", "many", "chosen"),
    [(1, 4, [4]), (2, 4, [2, 4]), (2, 3, [2, 3]), (3, 12, [4, 8, 12]), (4, 6, [2, 3, 5, 6]), (3, 5, [2, 3, 5])],
)
def test_depth_spreads_the_student_evenly_over_the_teacher(few, many, chosen):
    assert layer_map(student(few), teacher(many), "depth") == [(f"s{i + 1}", f"t{n}") for i, n in enumerate(chosen)]


def test_depth_gives_every_student_tap_a_later_teacher_tap_and_the_last_the_last():
    for many in range(1, 40):
        for few in range(1, many + 1):
            pairs = layer_map(student(few), teacher(many), "depth")
            places = [int(name[1:]) for _, name in pairs]
            assert [name for name, _ in pairs] == student(few)
            assert places == sorted(set(places))
            assert places[-1] == many
            gaps = [later - earlier for earlier, later in pairwise([0, *places])]
            assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("kind", ["direct", "width"])
def test_pairing_one_by_one_refuses_lists_of_two_lengths(kind):
    with pytest.raises(UserError, match=rf"map: {kind} pairs .*; 2 student and 3 teacher taps came.*`map: depth`"):
        layer_map(student(2), teacher(3), kind)


@pytest.mark.parametrize("kind", ["depth", "first", "last", "every-1", "auto"])
def test_a_teacher_with_fewer_taps_is_refused(kind):
    with pytest.raises(UserError, match=f"map: {kind} needs at least as many .*; 2 and 3 came: name more"):
        layer_map(student(3), teacher(2), kind, similarity=np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("kind", "few", "many", "chosen"),
    [
        ("first", 3, 5, [1, 2, 3]),
        ("last", 3, 5, [3, 4, 5]),
        ("last", 3, 3, [1, 2, 3]),
        ("every-1", 2, 5, [1, 2]),
        ("every-2", 2, 5, [2, 4]),
        ("every-3", 2, 12, [3, 6]),
        ("every-4", 3, 12, [4, 8, 12]),
        ("every-12", 1, 12, [12]),
    ],
)
def test_first_last_and_every_nth_are_counted_from_their_end(kind, few, many, chosen):
    assert layer_map(student(few), teacher(many), kind) == [(f"s{i + 1}", f"t{n}") for i, n in enumerate(chosen)]


def test_every_nth_says_which_n_would_do():
    with pytest.raises(UserError, match=r"every-4 reaches 2 of 11 teacher taps and 3 are needed.*`map: every-3`"):
        layer_map(student(3), teacher(11), "every-4")
    assert len(layer_map(student(3), teacher(11), "every-3")) == 3


@pytest.mark.parametrize("kind", ["deep", "every", "every-0", "every--1", "every-1.5", "every-2x", "Every-2", ""])
def test_an_unknown_kind_is_refused_with_the_known_ones(kind):
    with pytest.raises(UserError, match="one of direct, width, depth, first, last, auto, origin, every-N is needed"):
        layer_map(student(2), teacher(4), kind)


def test_auto_takes_the_most_similar_teacher_taps_in_order():
    similarity = [[0.2, 0.9, 0.3, 0.1], [0.1, 0.8, 0.2, 0.7]]
    assert layer_map(student(2), teacher(4), "auto", similarity) == [("s1", "t2"), ("s2", "t4")]


def test_auto_refuses_a_missing_similarity_and_one_of_another_shape():
    with pytest.raises(UserError, match="auto needs the similarity of the taps, and none came"):
        layer_map(student(2), teacher(3), "auto")
    with pytest.raises(UserError, match=r"similarity \[3, 2\] came for 2 and 3 taps"):
        layer_map(student(2), teacher(3), "auto", np.zeros((3, 2)))


def test_the_assignment_is_the_best_of_all_increasing_ones():
    random = np.random.default_rng(0)
    for _ in range(300):
        few = random.integers(1, 6)
        similarity = random.normal(size=(few, few + random.integers(0, 5)))
        best = max(combinations(range(similarity.shape[1]), few), key=lambda at: sum(similarity[range(few), at]))
        assert monotone_assignment(similarity) == list(best)


def test_of_equally_good_assignments_the_one_that_is_deeper_at_the_last_difference_is_taken():
    assert monotone_assignment(np.ones((2, 5))) == [3, 4]
    random = np.random.default_rng(0)
    for _ in range(300):
        few = random.integers(1, 5)
        similarity = random.integers(0, 3, size=(few, few + random.integers(0, 4)))
        every = list(combinations(range(similarity.shape[1]), few))
        greatest = max(similarity[range(few), at].sum() for at in every)
        equal = [at for at in every if similarity[range(few), at].sum() == greatest]
        assert monotone_assignment(similarity) == list(max(equal, key=lambda at: at[::-1]))


def test_the_total_counts_and_not_each_row_for_itself():
    assert monotone_assignment([[0.5, 0.6, 0.9], [0.0, 0.8, 1.0]]) == [1, 2]
    assert monotone_assignment([[0.9, 1.0, 0.0], [0.0, 0.9, 0.1]]) == [0, 1]


@pytest.mark.parametrize("similarity", [np.zeros((3, 2)), np.zeros((0, 2)), np.zeros(3), [[np.nan, 1.0]], [[np.inf]]])
def test_no_assignment_is_made_of_something_else_than_a_finite_matrix_of_enough_columns(similarity):
    with pytest.raises(UserError, match="needs a finite matrix"):
        monotone_assignment(similarity)


@pytest.mark.parametrize("kind", ["direct", "width", "depth", "last", "every-2", "auto"])
def test_no_taps_are_refused(kind):
    for pair in (([], teacher(1)), (student(1), []), ([], [])):
        with pytest.raises(UserError, match=rf"{len(pair[0])} student and {len(pair[1])} teacher taps came"):
            layer_map(*pair, kind)
