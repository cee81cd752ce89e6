"""A layout that cannot form is refused with what the group has, what is asked for, and what fits."""

from __future__ import annotations

import pytest

from backends.errors import ConfigError
from backends.layout import check_layout, describe, fitting
from backends.plan import Node


def nodes(*gpus: int) -> tuple[Node, ...]:
    return tuple(Node(ip=f"10.0.0.{at}", hostname=f"pod-{at}", gpus=count) for at, count in enumerate(gpus))


def refusal(axes: list[tuple[str, int]], *gpus: int) -> str:
    with pytest.raises(ConfigError) as caught:
        check_layout(axes, nodes(*gpus))
    return caught.value.text()


@pytest.mark.parametrize(
    ("axes", "gpus"),
    [
        ([("TP", 16), ("PP", 1)], (8, 8)),
        ([("TP", 8), ("PP", 2)], (8, 8)),
        ([("TP", 4), ("PP", 2), ("PCP", 2)], (8, 8)),
        ([("TP", 8)], (8,)),
        ([("TP", 12), ("PP", 1)], (4, 8)),
        ([("TP", 16)], (0, 8, 8)),
        ([("TP", 1)], (1,)),
    ],
)
def test_a_layout_that_uses_every_gpu_of_the_group_is_taken(axes: list[tuple[str, int]], gpus: tuple[int, ...]) -> None:
    check_layout(axes, nodes(*gpus))


@pytest.mark.parametrize(
    ("axes", "gpus", "found", "remedy"),
    [
        (
            [("TP", 16), ("PP", 1)],
            (4, 4),
            "TP 16 × PP 1 needs 16 GPUs; the group has 2 nodes × 4 = 8. Fits: TP 8 × PP 1, TP 4 × PP 2.",
            "make it a group of 4 nodes with 4 GPUs each or 2 nodes with 8 GPUs each",
        ),
        (
            [("TP", 8), ("PP", 3)],
            (8, 8),
            "TP 8 × PP 3 needs 24 GPUs; the group has 2 nodes × 8 = 16. Fits: TP 16 × PP 1, TP 8 × PP 2.",
            "make it a group of 3 nodes with 8 GPUs each",
        ),
        (
            [("TP", 16), ("PP", 1)],
            (8,),
            "TP 16 × PP 1 needs 16 GPUs; the group has 1 node × 8 = 8."
            " Fits: TP 8 × PP 1, TP 4 × PP 2, TP 2 × PP 4, TP 1 × PP 8.",
            "make it a group of 2 nodes with 8 GPUs each",
        ),
        (
            [("TP", 8), ("PP", 1)],
            (8, 8),
            "TP 8 × PP 1 needs 8 GPUs; the group has 2 nodes × 8 = 16. Fits: TP 16 × PP 1, TP 8 × PP 2.",
            "make it a group of 1 node with 8 GPUs each or 2 nodes with 4 GPUs each",
        ),
        (
            [("TP", 8), ("PP", 1), ("DP", 4)],
            (8, 8),
            "TP 8 × PP 1 × DP 4 needs 32 GPUs; the group has 2 nodes × 8 = 16. Fits: TP 8 × PP 1 × DP 2,"
            " TP 4 × PP 1 × DP 4, TP 16 × PP 1 × DP 1, TP 8 × PP 2 × DP 1.",
            "make it a group of 4 nodes with 8 GPUs each",
        ),
        (
            [("TP", 2), ("PP", 2), ("PCP", 3)],
            (4, 4),
            "TP 2 × PP 2 × PCP 3 needs 12 GPUs; the group has 2 nodes × 4 = 8. Fits: TP 2 × PP 2 × PCP 2,"
            " TP 4 × PP 2 × PCP 1, TP 2 × PP 1 × PCP 4, TP 1 × PP 2 × PCP 4.",
            "make it a group of 3 nodes with 4 GPUs each or 2 nodes with 6 GPUs each",
        ),
        (
            [("TP", 6)],
            (4, 4),
            "TP 6 needs 6 GPUs; the group has 2 nodes × 4 = 8. Fits: TP 8 × PP 1, TP 4 × PP 2.",
            "make it a group of 2 nodes with 3 GPUs each",
        ),
        (
            [("TP", 16)],
            (4, 8),
            "TP 16 needs 16 GPUs; the group has 2 nodes with 4 + 8 = 12. Fits: TP 12 × PP 1.",
            "make it a group of 2 nodes with 8 GPUs each",
        ),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_with_the_sum_and_what_fits(
    axes: list[tuple[str, int]], gpus: tuple[int, ...], found: str, remedy: str
) -> None:
    assert refusal(axes, *gpus).splitlines() == [found, f"  to do: set one of these, or {remedy}"]


def test_where_no_other_group_has_just_the_gpus_none_is_proposed() -> None:
    assert refusal([("TP", 7), ("PP", 1)], 4, 4).splitlines()[1:] == ["  to do: set one of these"]


def test_an_axis_that_is_not_used_is_not_mentioned() -> None:
    assert "DP" not in refusal([("TP", 16), ("PP", 1), ("DP", 1)], 4, 4)


@pytest.mark.parametrize("gpus", [(8,), (4, 4), (8, 8, 8), (0, 8, 8), (8, 4), (6, 6), (1, 1, 1, 1)])
@pytest.mark.parametrize("axes", [[("TP", 9)], [("TP", 64), ("PP", 1)], [("TP", 5), ("PP", 1), ("DP", 3)]])
def test_every_proposed_layout_is_one_that_is_taken(axes: list[tuple[str, int]], gpus: tuple[int, ...]) -> None:
    proposed = fitting(nodes(*gpus), axes)
    assert proposed
    for layout in proposed:
        pairs = (part.split() for part in layout.split(" × "))
        check_layout([(name, int(degree)) for name, degree in pairs], nodes(*gpus))


def test_a_replica_never_shares_a_node_with_a_part_of_another() -> None:
    assert fitting(nodes(6, 6), [("TP", 4), ("PP", 1), ("DP", 4)]) == [
        "TP 3 × PP 1 × DP 4",
        "TP 12 × PP 1 × DP 1",
        "TP 6 × PP 1 × DP 2",
        "TP 2 × PP 1 × DP 6",
    ]


def test_one_gpu_is_written_in_the_singular() -> None:
    assert refusal([("TP", 1), ("PP", 1)], 8, 8).startswith("TP 1 × PP 1 needs 1 GPU; the group has")


def test_a_group_without_gpus_is_told_to_ask_for_them() -> None:
    assert refusal([("TP", 16), ("PP", 1)], 0, 0).splitlines() == [
        "TP 16 × PP 1 needs 16 GPUs; no GPU was found on this node",
        "  expected: 16 GPUs over 2 nodes",
        "  to do: request GPUs in the pod template; where they are not seen by NVML, say --gpus-per-node N",
    ]


def test_nodes_that_differ_hold_whole_replicas_or_one_without_stages() -> None:
    assert fitting(nodes(8, 4), [("TP", 4), ("PP", 1), ("DP", 4)])[0] == "TP 4 × PP 1 × DP 3"
    assert all("DP 1" not in text.split(" × ") for text in fitting(nodes(8, 4), [("TP", 8), ("PP", 1), ("DP", 2)]))
    assert fitting(nodes(8, 4)) == ["TP 12 × PP 1"]


def test_nodes_that_differ_are_listed_one_by_one() -> None:
    assert "the group has 2 nodes with 4 + 8 = 12" in refusal([("TP", 16)], 4, 8)


def test_a_leader_without_gpus_is_not_taken_for_the_measure_of_a_node() -> None:
    text = refusal([("TP", 32), ("PP", 1)], 0, 8, 8)
    assert "TP 32 × PP 1 needs 32 GPUs; the group has 3 nodes with 0 + 8 + 8 = 16" in text
    assert "a group of 32 nodes" not in text


@pytest.mark.parametrize(
    ("gpus", "text"),
    [
        ((8,), "1 node × 8 = 8"),
        ((4, 4), "2 nodes × 4 = 8"),
        ((8, 8, 8), "3 nodes × 8 = 24"),
        ((0, 8, 8), "3 nodes with 0 + 8 + 8 = 16"),
    ],
)
def test_a_groups_gpus_are_described_as_a_sum(gpus: tuple[int, ...], text: str) -> None:
    assert describe(nodes(*gpus)) == text


@pytest.mark.parametrize(
    ("gpus", "pairs"),
    [
        ((1,), ["TP 1 × PP 1"]),
        ((2,), ["TP 2 × PP 1", "TP 1 × PP 2"]),
        ((8,), ["TP 8 × PP 1", "TP 4 × PP 2", "TP 2 × PP 4", "TP 1 × PP 8"]),
        ((16,), ["TP 16 × PP 1", "TP 8 × PP 2", "TP 4 × PP 4", "TP 2 × PP 8"]),
        ((4, 4), ["TP 8 × PP 1", "TP 4 × PP 2"]),
        ((8, 8, 8, 8), ["TP 32 × PP 1", "TP 16 × PP 2", "TP 8 × PP 4"]),
        ((1, 1, 1, 1, 1, 1, 1, 1), ["TP 8 × PP 1", "TP 4 × PP 2", "TP 2 × PP 4", "TP 1 × PP 8"]),
    ],
)
def test_what_fits_uses_every_gpu_with_tp_falling_and_at_most_four_pairs(
    gpus: tuple[int, ...], pairs: list[str]
) -> None:
    assert fitting(nodes(*gpus)) == pairs


def test_no_proposed_stage_splits_a_node() -> None:
    assert fitting(nodes(4, 4, 4)) == ["TP 12 × PP 1", "TP 4 × PP 3"]
