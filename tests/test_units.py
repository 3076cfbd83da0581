"""Quantities with their units."""

import pytest

from edgestill.errors import UserError
from edgestill.units import format_bytes, format_seconds, parse_bytes, parse_fraction, parse_seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("120 KB", 120_000),
        ("120KB", 120_000),
        ("  64 KiB ", 65_536),
        ("98496 B", 98_496),
        ("1.5 MB", 1_500_000),
        (".5 MiB", 524_288),
        ("2e3 B", 2_000),
        ("1 GB", 10**9),
        ("1 GiB", 2**30),
        ("0 B", 0),
    ],
)
def test_sizes(text, count):
    assert parse_bytes(text) == count
    assert isinstance(parse_bytes(text), int)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2 ms", 0.002), ("1.5 s", 1.5), ("250 us", 2.5e-4), ("3 min", 180), ("2 h", 7200)]
)
def test_times(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(("text", "share"), [(0.87, 0.87), (1, 1.0), ("87 %", 0.87), ("12.5%", 0.125), ("0.3", 0.3)])
def test_shares(text, share):
    assert parse_fraction(text) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("text", ["120", 120, 1.5, "", "KB", "one KB", "1 2 KB", "1,5 KB", None, True, "-", "nan KB"])
def test_a_size_without_number_and_unit_is_refused(text):
    with pytest.raises(UserError, match=r"a size needs .*120 KB"):
        parse_bytes(text)


@pytest.mark.parametrize(("text", "meant"), [("120 kb", "KB"), ("120 Kb", "KB"), ("1 KIB", "KiB"), ("1 mb", "MB")])
def test_a_mistyped_unit_is_refused_with_the_closest(text, meant):
    with pytest.raises(UserError, match=f"{text!r} came; did you mean .*{meant}"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["2 msec", "2 sec", "2 KB", "2 µs", "2 %"])
def test_a_time_needs_a_unit_of_time(text):
    with pytest.raises(UserError, match=f"a time needs one of the units us, ms, s, min, h, .*{text!r} came"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["-5 KB", "1e999 KB"])
def test_a_size_below_zero_or_beyond_all_is_refused(text):
    with pytest.raises(UserError, match="finite number of at least 0"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["half", "85 KB", "%", "-3 %"])
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="a share"):
        parse_fraction(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (92_754, "92.8 KB"),
        (318_144, "318 KB"),
        (999_600, "1000 KB"),
        (2_500_000, "2.5 MB"),
        (4e9, "4 GB"),
        (5e12, "5 TB"),
    ],
)
def test_bytes_for_people(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00027, "0.27 ms"),
        (0.9999, "1 s"),
        (95, "95 s"),
        (119.9, "120 s"),
        (600, "10 min"),
        (4000, "1 h 7 min"),
        (3599, "1 h 0 min"),
    ],
)
def test_durations_for_people(seconds, text):
    assert format_seconds(seconds) == text
