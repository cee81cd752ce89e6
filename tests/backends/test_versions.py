"""Versions are compared by their first two numbers; one that is not known has reached nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.versions import at_least, known_to_be_older


@pytest.mark.parametrize(
    ("version", "reached"),
    [
        (None, False),
        ("", False),
        ("0", False),
        ("0.18.0", True),
        ("0.18", True),
        ("0.18rc1", True),
        ("0.18.1rc1.dev3+gabc", True),
        ("0.17.9", False),
        ("0.17rc18", False),
        ("0.9.2", False),  # numbers, not letters: 9 is less than 18
        ("0.100", True),
        ("0.018", True),
        ("1.0", True),
        ("1", True),
        ("2", True),
        ("1rc1", True),
        ("0.32.0+cpu", True),
        ("0.17+cpu.18", False),
        ("0.8.5.post1", False),
        ("0.1.dev1+gabc", False),  # a build from sources without tags
        ("0.dev18", False),
        ("garbage", False),
        ("garbage.99", True),  # what has no leading number counts as 0
        (".99", True),
        ("..", False),
        ("-1.99", True),
    ],
)
def test_a_version_has_reached_another_or_not(version: str | None, reached: bool) -> None:
    assert at_least(version, (0, 18)) is reached


@pytest.mark.parametrize(
    ("version", "reached"),
    [
        ("1.18.0", False),
        ("2.0", False),
        ("2.51.9", False),
        ("2.52.0", True),
        ("2.52", True),
        ("3", True),
        (None, False),
    ],
)
def test_the_first_number_outweighs_the_second(version: str | None, reached: bool) -> None:
    assert at_least(version, (2, 52)) is reached


@pytest.mark.parametrize(
    ("version", "reached"),
    [("²", False), ("0.²", False), ("2²", True), ("0.18²", True), ("①.5", False), ("٣.0", True), ("Ⅷ", False)],
)
def test_digits_that_are_no_decimal_numbers_are_no_error(version: str, reached: bool) -> None:
    assert at_least(version, (0, 18)) is reached


@given(st.text(max_size=40) | st.text("0123456789.²rc+-", max_size=40))
def test_no_text_is_an_error(version: str) -> None:
    assert at_least(version, (0, 0)) is True
    assert at_least(version, (10**41, 0)) is False


@given(st.integers(0, 999), st.integers(0, 999), st.integers(0, 999), st.integers(0, 999))
def test_versions_are_ordered_as_pairs_of_numbers(major: int, minor: int, wanted: int, wanted_minor: int) -> None:
    reached = (major, minor) >= (wanted, wanted_minor)
    for version in (f"{major}.{minor}", f"{major}.{minor}.7", f"{major}.{minor}rc2", f"{major}.{minor}+cu130"):
        assert at_least(version, (wanted, wanted_minor)) is reached


@pytest.mark.parametrize(
    ("version", "reached"),
    [
        ("0.11.0", False),
        ("0.11.0.post2", False),
        ("0.11", False),
        ("0.11.1", True),
        ("0.11.1rc2", True),
        ("0.12", True),
    ],
)
def test_a_third_number_counts_where_it_is_asked_for(version: str, reached: bool) -> None:
    assert at_least(version, (0, 11, 1)) is reached


@pytest.mark.parametrize(
    ("version", "older"),
    [("0.11.0", True), ("0.11.1", False), ("0.32.0+cpu", False), (None, False), ("0.1.dev1+gabc", False)],
)
def test_only_a_version_that_is_known_is_older(version: str | None, older: bool) -> None:
    assert known_to_be_older(version, (0, 11, 1)) is older
