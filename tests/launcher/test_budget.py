"""The time for stopping is shared out so that it ends before the kubelet's SIGKILL, and every cut is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.budget import Budget, share_out


def parts(budget: Budget) -> tuple[float, float, float, float, int]:
    return (budget.total, budget.delay, budget.engine, budget.reserve, budget.answering)


# --drain-timeout, --drain-delay, terminationGracePeriodSeconds -> total, delay, engine, reserve, answering
@pytest.mark.parametrize(
    ("given_times", "expected"),
    [
        ((None, 5, None), (25, 5, 17, 3, 15)),  # the defaults
        ((25, 5, None), (25, 5, 17, 3, 15)),
        ((None, 0, None), (25, 0, 22, 3, 20)),
        ((None, 5, 30), (25, 5, 17, 3, 15)),  # Kubernetes' default grace
        ((None, 5, 60), (55, 5, 47, 3, 45)),
        ((None, 5, 600), (595, 5, 587, 3, 585)),
        ((25, 5, 60), (25, 5, 17, 3, 15)),  # more grace than is asked for is not used
        ((55, 5, 60), (55, 5, 47, 3, 45)),
        ((None, 0, 24), (20, 0, 17, 3, 15)),  # a sixth of a short grace is its margin
        ((None, 0, 12), (10, 0, 8, 2, 6)),
        ((15, 0, None), (15, 0, 12, 3, 10)),
        ((10, 4, None), (10, 4, 4, 2, 2)),
        ((7, 0, None), (7, 0, 5.6, 1.4, 3)),
        ((3, 0, None), (3, 0, 2.4, 0.6, 1)),
        ((25.5, 0.25, None), (25.5, 0.25, 22.25, 3, 20)),
    ],
)
def test_what_fits_is_shared_out_and_nothing_is_cut(
    given_times: tuple[float | None, float, float | None], expected: tuple[float, ...]
) -> None:
    budget = share_out(*given_times)
    assert parts(budget) == pytest.approx(expected)
    assert budget.cuts == ()


@pytest.mark.parametrize(
    ("given_times", "expected", "cut"),
    [
        (
            (30, 5, 30),
            (25, 5, 17, 3, 15),
            "--drain-timeout 30 s is cut to 25 s: terminationGracePeriodSeconds is 30, and then the kubelet kills",
        ),
        (
            (120, 5, 60),
            (55, 5, 47, 3, 45),
            "--drain-timeout 120 s is cut to 55 s: terminationGracePeriodSeconds is 60, and then the kubelet kills",
        ),
        (
            (12, 0, 12),
            (10, 0, 8, 2, 6),
            "--drain-timeout 12 s is cut to 10 s: terminationGracePeriodSeconds is 12, and then the kubelet kills",
        ),
    ],
)
def test_a_drain_timeout_that_the_pods_grace_does_not_hold_is_cut_and_said(
    given_times: tuple[float | None, float, float | None], expected: tuple[float, ...], cut: str
) -> None:
    budget = share_out(*given_times)
    assert parts(budget) == pytest.approx(expected)
    assert budget.cuts == (cut,)


@pytest.mark.parametrize(
    ("given_times", "expected", "cut"),
    [
        (
            (25, 20, None),
            (25, 11, 11, 3, 9),
            "--drain-delay 20 s is cut to 11 s: the engine needs the rest of the 25 s",
        ),
        ((10, 5, None), (10, 4, 4, 2, 2), "--drain-delay 5 s is cut to 4 s: the engine needs the rest of the 10 s"),
        (
            (None, 600, 60),
            (55, 26, 26, 3, 24),
            "--drain-delay 600 s is cut to 26 s: the engine needs the rest of the 55 s",
        ),
    ],
)
def test_a_drain_delay_that_leaves_the_engine_too_little_is_cut_and_said(
    given_times: tuple[float | None, float, float | None], expected: tuple[float, ...], cut: str
) -> None:
    budget = share_out(*given_times)
    assert parts(budget) == pytest.approx(expected)
    assert budget.cuts == (cut,)


def test_both_may_be_cut_and_each_is_said() -> None:
    budget = share_out(100, 50, 30)
    assert parts(budget) == (25, 11, 11, 3, 9)
    assert budget.cuts == (
        "--drain-timeout 100 s is cut to 25 s: terminationGracePeriodSeconds is 30, and then the kubelet kills",
        "--drain-delay 50 s is cut to 11 s: the engine needs the rest of the 25 s",
    )


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (0, (0, 0, 0, 0, 0)),
        (0.1, (0.1, 0.04, 0.04, 0.02, 0)),
        (1, (1, 0.4, 0.4, 0.2, 0)),
        (2, (2, 0.8, 0.8, 0.4, 0)),
        (2.5, (2.5, 1, 1, 0.5, 1)),  # a whole second of answering rather than none
        (5, (5, 2, 2, 1, 1)),
    ],
)
def test_with_next_to_no_time_each_gets_its_share_of_it(total: float, expected: tuple[float, ...]) -> None:
    budget = share_out(total, 5, None)
    assert parts(budget) == pytest.approx(expected)
    assert budget.cuts == (
        f"--drain-delay 5 s is cut to {expected[1]:g} s: the engine needs the rest of the {total:g} s",
    )


@pytest.mark.parametrize("grace", [0, 0.1, 1, 2])
def test_a_pod_with_next_to_no_grace_is_done_before_it_is_over(grace: float) -> None:
    budget = share_out(None, 0, grace)
    assert budget.total == pytest.approx(grace * 5 / 6)
    assert min(parts(budget)) >= 0
    assert budget.cuts == ()


TIMES = st.floats(0, 1e6) | st.integers(0, 600)


@given(timeout=st.none() | TIMES, delay=TIMES, grace=st.none() | TIMES)
def test_the_parts_are_never_negative_and_sum_to_a_total_that_the_grace_holds(
    timeout: float | None, delay: float, grace: float | None
) -> None:
    budget = share_out(timeout, delay, grace)
    assert min(parts(budget)) >= 0
    assert budget.delay + budget.engine + budget.reserve == pytest.approx(budget.total)
    assert budget.answering <= budget.engine
    assert isinstance(budget.answering, int)
    assert grace is None or budget.total <= grace


@given(timeout=st.none() | TIMES, delay=TIMES, grace=st.none() | TIMES)
def test_what_the_user_gave_is_kept_or_a_cut_is_said(timeout: float | None, delay: float, grace: float | None) -> None:
    budget = share_out(timeout, delay, grace)
    said = [cut.split()[0] for cut in budget.cuts]
    assert ("--drain-timeout" in said) == (timeout is not None and budget.total != timeout)
    assert ("--drain-delay" in said) == (budget.delay != delay)
    assert budget.total <= (budget.total if timeout is None else timeout)
    assert budget.delay <= delay


@given(timeout=st.none() | TIMES, delay=TIMES, grace=st.none() | TIMES)
def test_a_delay_never_takes_more_than_it_leaves_to_the_engine_when_it_is_cut(
    timeout: float | None, delay: float, grace: float | None
) -> None:
    budget = share_out(timeout, delay, grace)
    assert budget.engine >= budget.delay or budget.engine == pytest.approx(budget.delay)
