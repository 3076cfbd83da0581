"""Layer maps: which student tap learns from which teacher tap."""

from itertools import pairwise

import pytest

from edgestill.errors import UserError
from edgestill.mapping import layer_map


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


def test_depth_refuses_a_teacher_with_fewer_taps():
    with pytest.raises(UserError, match="at least as many teacher taps as student taps; 2 and 3 came"):
        layer_map(student(3), teacher(2), "depth")


@pytest.mark.parametrize("kind", ["direct", "width", "depth"])
def test_no_taps_are_refused(kind):
    for pair in (([], teacher(1)), (student(1), []), ([], [])):
        with pytest.raises(UserError, match=rf"{len(pair[0])} student and {len(pair[1])} teacher taps came"):
            layer_map(*pair, kind)
