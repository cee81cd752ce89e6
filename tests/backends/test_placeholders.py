"""Placeholders become this pod's values; everything else in braces is the user's."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.errors import ConfigError
from backends.group import Group
from backends.placeholders import expand_all
from backends.plan import Node, Request

LEADER = Node(ip="10.0.0.10", hostname="my-lws-0", gpus=8)
WORKERS = tuple(Node(ip=f"10.0.0.1{at}", hostname=f"my-lws-0-{at}", gpus=8) for at in (1, 2))
WORKER_2 = Request(Group("my-lws-0.my-lws.default", 3, 2, "id"), (LEADER, *WORKERS), ())


def expand(text: str) -> str:
    return expand_all((text,), WORKER_2)[0]


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("{leader}", "my-lws-0.my-lws.default"),
        ("{leader_ip}", "10.0.0.10"),
        ("{size}", "3"),
        ("{index}", "2"),
        ("{pod_ip}", "10.0.0.12"),
        ("{gpus}", "8"),
        ("--dist-init-addr={leader_ip}:5000", "--dist-init-addr=10.0.0.10:5000"),
        ("{index}/{size}", "2/3"),
        ("{index}{index}", "22"),
        ("{index*gpus}", "16"),
        ("{ index * gpus }", "16"),
        ("{size*gpus}", "24"),
        ("{gpus*2}", "16"),
        ("{size*gpus*10}", "240"),
        ("--start-rank={index*gpus},", "--start-rank=16,"),
        ('{"rank": {index}, "of": {size}}', '{"rank": 2, "of": 3}'),
        ("{{size}}", "{3}"),
        ("{workers}", "10.0.0.11,10.0.0.12"),
        ("--rpc={workers:50052}", "--rpc=10.0.0.11:50052,10.0.0.12:50052"),
    ],
)
def test_a_placeholder_becomes_this_pods_value_wherever_it_stands(text: str, expanded: str) -> None:
    assert expand(text) == expanded


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "{",
        "}",
        "{size",
        "size}",
        "{Size}",
        "{ size }",
        "{unknown}",
        "{workers:}",
        "{workers:0}",
        "{workers: 50052}",
        "{workers:99999}",
        "{leader:50052}",
        "{2*3}",
        "{a*b}",
        "{*}",
        "${HOME}",
        '{"size": 2}',
        '{"a": {"b": {}}}',
        '{"rope_type": "yarn", "factor": 4.0}',
        '{"glob": "*.safetensors"}',
        "{% if index * 2 %}",
    ],
)
def test_anything_else_in_braces_is_left_as_it_is(text: str) -> None:
    assert expand(text) == text


@pytest.mark.parametrize("text", ['{"ignore": "*index*"}', '{"patterns": ["a*size*b"]}', '{"re": ".*gpus*."}'])
def test_json_with_a_star_round_a_placeholders_name_is_left_as_it_is(text: str) -> None:
    assert expand(text) == text


def test_all_texts_keep_their_number_and_order() -> None:
    assert expand_all(("a", "{size}", "", "{index}"), WORKER_2) == ("a", "3", "", "2")


def test_a_value_that_looks_like_a_placeholder_is_not_expanded_again() -> None:
    odd = Request(Group("{size}", 1, 0, "id"), (LEADER,), ())
    assert expand_all(("{leader}",), odd) == ("{size}",)


@pytest.mark.parametrize(
    ("text", "factor"), [("{index*leader}", "'leader'"), ("{gpus*pod_ip}", "'pod_ip'"), ("{size*many}", "'many'")]
)
def test_a_product_with_something_that_is_no_number_is_a_fault_that_names_it(text: str, factor: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand(text)
    assert caught.value.text() == (
        f"{text} cannot be multiplied: {factor} is not a number\n"
        "  expected: factors out of size, index, gpus and whole numbers, e.g. {index*gpus}"
    )


WORDS = st.text(st.characters(exclude_characters="{}")) | st.sampled_from(["size", "*size*", "a*index*b", "gpus*2"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON, indent=st.sampled_from([None, 2]))
@example(value={"index": {"size": {}}}, indent=None)
def test_arbitrary_json_passes_unharmed(value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    assert expand(text) == text


@given(before=st.text(st.characters(exclude_characters="{}")), after=st.text(st.characters(exclude_characters="{}")))
def test_the_text_around_a_placeholder_is_kept_to_the_letter(before: str, after: str) -> None:
    assert expand(f"{before}{{index}}{after}") == f"{before}2{after}"
