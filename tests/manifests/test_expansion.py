"""Kubernetes' own $(VAR), which the tests of the manifests rely on: each row is a rule of its expansion."""

from __future__ import annotations

import pytest
from rendered import Template, environment, expand

VALUES = {"A": "1", "EMPTY": "", "NESTED": "$(A)", "DOTTED.NAME": "d"}


@pytest.mark.parametrize(
    ("written", "becomes"),
    [
        ("", ""),
        ("plain", "plain"),
        ("$(A)", "1"),
        ("x$(A)y$(A)z", "x1y1z"),
        ("$(EMPTY)", ""),
        ("$(DOTTED.NAME)", "d"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$(UNKNOWN)$(A)", "$(UNKNOWN)1"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$$", "$"),
        ("$", "$"),
        ("ends in $", "ends in $"),
        ("$A", "$A"),
        ("${A}", "${A}"),
        ("$(A", "$(A"),
        ("$()", "$()"),
        ("$(NESTED)", "$(A)"),
        ("$(( 8 * $(A) ))", "$(( 8 * $(A) ))"),  # up to the first ")" it is a name, which nobody knows
        ("line\n$(A)$\n", "line\n1$\n"),
        ("awk '{print $1}' $(A)", "awk '{print $1}' 1"),
    ],
)
def test_a_reference_becomes_what_kubernetes_makes_of_it(written: str, becomes: str) -> None:
    assert expand(written, VALUES) == becomes


def test_a_variable_sees_those_above_it_and_the_controllers_cannot_be_replaced() -> None:
    env = [
        {"name": "LWS_GROUP_SIZE", "value": "9"},
        {"name": "EARLY", "value": "$(LATE)-$(LWS_GROUP_SIZE)"},
        {"name": "LATE", "value": "late"},
        {"name": "AFTER", "value": "$(LATE)"},
    ]
    spec = {"containers": [{"env": env}]}
    got = environment(Template("model", 2, range(2), {}, spec), 0, {"LWS_GROUP_SIZE": "2"})
    assert got == {"LWS_GROUP_SIZE": "2", "EARLY": "$(LATE)-2", "LATE": "late", "AFTER": "late"}
