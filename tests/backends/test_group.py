"""Identity: who a pod is, and how a person learns what is wrong with what the pod was told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import ConfigError, Fault
from backends.group import MAX_SIZE, Group, member_name, parse_group

LWS = {"LWS_LEADER_ADDRESS": "my-lws-0.my-lws.default", "LWS_GROUP_SIZE": "4", "LWS_WORKER_INDEX": "2"}


def refusal(environ: dict[str, str], **flags: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_group(environ, **flags)
    return caught.value


def address_fault(address: str) -> Fault:
    faults = refusal({**LWS, "LWS_LEADER_ADDRESS": address}).faults
    assert len(faults) == 1
    return faults[0]


# --- what is read ---


def test_the_three_variables_of_lws_make_a_group_whose_id_is_the_address_as_given() -> None:
    assert parse_group(LWS) == Group("my-lws-0.my-lws.default", 4, 2, "my-lws-0.my-lws.default")


@pytest.mark.parametrize(
    ("address", "size", "index"),
    [
        ("LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX"),
        ("RBG_LWP_LEADER_ADDRESS", "RBG_LWP_GROUP_SIZE", "RBG_LWP_WORKER_INDEX"),
        ("MASTER_ADDR", "NNODES", "NODE_RANK"),
    ],
)
def test_every_controllers_names_for_the_triple_are_read(address: str, size: str, index: str) -> None:
    assert parse_group({address: "10.0.0.1", size: "2", index: "1"}) == Group("10.0.0.1", 2, 1, "10.0.0.1")


def test_lws_is_read_where_torchrun_names_are_set_as_well() -> None:
    environ = {**LWS, "MASTER_ADDR": "elsewhere", "NNODES": "9", "NODE_RANK": "8"}
    assert parse_group(environ) == Group("my-lws-0.my-lws.default", 4, 2, "my-lws-0.my-lws.default")


def test_two_families_are_never_mixed_into_one_identity() -> None:
    error = refusal({"LWS_GROUP_SIZE": "4", "MASTER_ADDR": "elsewhere", "NNODES": "9", "NODE_RANK": "8"})
    assert "LWS_LEADER_ADDRESS is not set" in error.text()
    assert "LWS_WORKER_INDEX is not set" in error.text()


def test_a_fault_names_the_variable_of_the_family_that_was_read() -> None:
    error = refusal({"RBG_LWP_LEADER_ADDRESS": "a", "RBG_LWP_GROUP_SIZE": "two", "RBG_LWP_WORKER_INDEX": "0"})
    assert error.faults[0].found == "RBG_LWP_GROUP_SIZE is 'two'"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"leader_address": "10.0.0.7"}, Group("10.0.0.7", 4, 2, "10.0.0.7")),
        ({"size": "8"}, Group("my-lws-0.my-lws.default", 8, 2, "my-lws-0.my-lws.default")),
        ({"index": "0"}, Group("my-lws-0.my-lws.default", 4, 0, "my-lws-0.my-lws.default")),
        ({"leader_address": "h", "size": "9", "index": "8"}, Group("h", 9, 8, "h")),
        ({"group_id": "blue"}, Group("my-lws-0.my-lws.default", 4, 2, "blue")),
    ],
)
def test_flags_win_over_the_environment(flags: dict[str, str], expected: Group) -> None:
    assert parse_group(LWS, **flags) == expected


def test_a_good_flag_hides_a_broken_variable() -> None:
    assert parse_group({**LWS, "LWS_GROUP_SIZE": "many"}, size="3").size == 3


def test_flags_alone_make_a_group() -> None:
    assert parse_group({}, leader_address="fd00::1", size="2", index="1") == Group("fd00::1", 2, 1, "fd00::1")


def test_values_may_stand_between_blanks_as_yaml_leaves_them() -> None:
    environ = {"LWS_LEADER_ADDRESS": " host \n", "LWS_GROUP_SIZE": " 2", "LWS_WORKER_INDEX": "1\n"}
    assert parse_group(environ) == Group("host", 2, 1, "host")


@pytest.mark.parametrize(
    ("index", "leads", "name"), [("0", True, "the leader"), ("1", False, "worker 1"), ("3", False, "worker 3")]
)
def test_index_zero_is_the_leader_and_every_other_a_numbered_worker(index: str, leads: bool, name: str) -> None:
    group = parse_group(LWS, index=index)
    assert group.is_leader is leads
    assert group.me == name
    assert member_name(int(index)) == name


# --- a group of one ---


def test_a_group_of_one_needs_neither_address_nor_index() -> None:
    assert parse_group({}, size="1") == Group("localhost", 1, 0, "localhost")


def test_a_group_of_one_keeps_the_address_that_it_was_given() -> None:
    assert parse_group({**LWS, "LWS_GROUP_SIZE": "1", "LWS_WORKER_INDEX": "0"}) == Group(
        "my-lws-0.my-lws.default", 1, 0, "my-lws-0.my-lws.default"
    )


def test_a_group_of_one_has_no_index_one() -> None:
    error = refusal({}, size="1", index="1")
    assert error.faults == (
        Fault(
            "--index is 1, outside the group", "0 to 0, because the group's size is 1 and counts the leader (index 0)"
        ),
    )


def test_a_larger_group_needs_an_address_and_an_index() -> None:
    error = refusal({}, size="2")
    assert [fault.found for fault in error.faults] == ["LWS_WORKER_INDEX is not set", "LWS_LEADER_ADDRESS is not set"]
    assert "pass --index" in error.faults[0].remedy
    assert "pass --leader-address" in error.faults[1].remedy


# --- nothing at all ---


def test_outside_any_group_the_message_says_how_to_get_into_one() -> None:
    error = refusal({"PATH": "/bin"})
    text = error.text()
    assert len(error.faults) == 1
    assert "this is not a pod of a group" in text
    for name in ("LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX", "--leader-address", "--size", "--index"):
        assert name in text
    assert "lwsrun simulate --size 2" in text
    assert "--size 1" in text


@pytest.mark.parametrize(
    ("missing", "flag"),
    [("LWS_LEADER_ADDRESS", "--leader-address"), ("LWS_GROUP_SIZE", "--size"), ("LWS_WORKER_INDEX", "--index")],
)
def test_a_missing_variable_is_named_with_the_flag_that_stands_in_for_it(missing: str, flag: str) -> None:
    error = refusal({name: value for name, value in LWS.items() if name != missing})
    assert error.faults[0].found == f"{missing} is not set"
    assert f"pass {flag}" in error.faults[0].remedy
    assert "leaderworkerset.sigs.k8s.io/worker-index" in error.faults[0].remedy


# --- sizes and indexes ---


def test_an_index_beyond_the_size_is_a_fault_that_names_both() -> None:
    error = refusal({**LWS, "LWS_WORKER_INDEX": "4"})
    assert error.text() == (
        "LWS_WORKER_INDEX is 4, outside the group\n"
        "  expected: 0 to 3, because the group's size is 4 and counts the leader (index 0)"
    )


@pytest.mark.parametrize("value", ["", "two", "-1", "+2", "2.0", "1e3", "0x10", "1_0", "²", "٣", "1" * 10])
@pytest.mark.parametrize("name", ["LWS_GROUP_SIZE", "LWS_WORKER_INDEX"])
def test_anything_but_a_short_decimal_number_is_refused_and_shown(name: str, value: str) -> None:
    error = refusal({**LWS, name: value})
    assert Fault(f"{name} is {value!r}", "a whole number in decimal") in error.faults


@pytest.mark.parametrize("size", ["0", "1025", "999999999"])
def test_a_size_outside_the_limits_is_refused_with_the_limits(size: str) -> None:
    error = refusal({**LWS, "LWS_GROUP_SIZE": size})
    assert error.faults == (Fault(f"LWS_GROUP_SIZE is {size}", "1 to 1024 (the size counts the leader)"),)


@pytest.mark.parametrize(("size", "index"), [("2", "0"), ("2", "1"), ("1024", "1023"), ("0004", "03")])
def test_sizes_and_indexes_up_to_the_limits_are_taken(size: str, index: str) -> None:
    group = parse_group({**LWS, "LWS_GROUP_SIZE": size, "LWS_WORKER_INDEX": index})
    assert (group.size, group.index) == (int(size), int(index))


def test_an_unexpanded_variable_is_explained() -> None:
    error = refusal({**LWS, "LWS_GROUP_SIZE": "$(SIZE)"})
    assert error.faults[0].found == "LWS_GROUP_SIZE is '$(SIZE)'"
    assert error.faults[0].expected == "a whole number in decimal"
    assert "Kubernetes expands $(NAME) only" in error.faults[0].remedy


# --- addresses ---


@pytest.mark.parametrize(
    "address",
    [
        "my-lws-0.my-lws.default",
        "my-lws-0.my-lws.default.svc.cluster.local",
        "my-lws-0.my-lws.default.svc.cluster.local.",
        "localhost",
        "node_7",
        "0-starts-with-a-digit.example",
        "10.0.0.1",
        "fd00::1",
        "::1",
        "fe80::1%eth0",
        "::ffff:10.0.0.1",
        "a" * 63 + ".b",
    ],
)
def test_host_names_and_ip_literals_are_taken_as_they_are(address: str) -> None:
    assert parse_group({**LWS, "LWS_LEADER_ADDRESS": address}).leader_address == address


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("", "it is empty"),
        ("   ", "it is empty"),
        ("my-lws-0.my-lws:9470", "it has a port (9470)"),
        ("10.0.0.1:6379", "it has a port (6379)"),
        ("[fd00::1]:9470", "it has a port (9470)"),
        ("http://my-lws-0.my-lws", "it is a URL"),
        ("tcp://10.0.0.1:6379", "it is a URL"),
        ("my-lws-0..default", "it has an empty label"),
        (".default", "it has an empty label"),
        (".", "it has an empty label"),
        ("a" * 64 + ".default", "the label aaaaaaaaaaaaaaaaaaaa… is longer than 63 characters"),
        (".".join(["abcdefghi"] * 26), "259 characters are more than the 253 that DNS allows"),
        ("my lws", "'my lws' is not a DNS label"),
        ("-lws.default", "'-lws' is not a DNS label"),
        ("lws-.default", "'lws-' is not a DNS label"),
        ("größe.default", "'größe' is not a DNS label"),
        ("[fd00::1]", "is not a DNS label"),
        ("$(LWS_LEADER_ADDRESS)", "'$(LWS_LEADER_ADDRESS)' is not a DNS label"),
        ("10.0.0.256", "it is not a valid IPv4 address"),
        ("10.0.1", "it is not a valid IPv4 address"),
    ],
)
def test_what_cannot_be_an_address_is_refused_with_the_reason_and_the_form(address: str, why: str) -> None:
    fault = address_fault(address)
    assert fault.found.startswith(f"LWS_LEADER_ADDRESS is {address!r}: ")
    assert why in fault.found
    assert fault.expected == ("a host name such as my-lws-0.my-lws.default, or an IPv4 or IPv6 address, without a port")


@pytest.mark.parametrize("address", ["$(LWS_LEADER_ADDRESS)", "${LEADER}", "$LEADER.default"])
def test_an_address_that_nobody_expanded_says_who_expands_what(address: str) -> None:
    assert "Kubernetes expands $(NAME) only" in address_fault(address).remedy


def test_a_broken_address_from_a_flag_names_the_flag() -> None:
    error = refusal(LWS, leader_address="host:1")
    assert error.faults[0].found == "--leader-address is 'host:1': it has a port (1)"


@pytest.mark.parametrize("group_id", ["", "  ", "\n"])
def test_an_empty_group_id_is_refused(group_id: str) -> None:
    error = refusal(LWS, group_id=group_id)
    assert error.faults == (Fault("--group-id is empty", "any non-empty text, the same in every pod of the group"),)


# --- all at once ---


def test_every_fault_is_reported_in_one_message() -> None:
    error = refusal({"LWS_LEADER_ADDRESS": "host:80", "LWS_GROUP_SIZE": "0", "LWS_WORKER_INDEX": "first"}, group_id=" ")
    assert [fault.found for fault in error.faults] == [
        "LWS_GROUP_SIZE is 0",
        "LWS_WORKER_INDEX is 'first'",
        "LWS_LEADER_ADDRESS is 'host:80': it has a port (80)",
        "--group-id is empty",
    ]
    assert error.text().splitlines()[0] == (
        "4 faults: LWS_GROUP_SIZE is 0; LWS_WORKER_INDEX is 'first';"
        " LWS_LEADER_ADDRESS is 'host:80': it has a port (80); --group-id is empty"
    )
    assert error.text().count("  expected: ") == 4


def test_one_fault_needs_no_count() -> None:
    error = ConfigError(Fault("the lamp is out", "a lit lamp", "light it"))
    assert error.text() == "the lamp is out\n  expected: a lit lamp\n  to do: light it"
    assert str(error) == "the lamp is out"


def test_an_error_without_a_fault_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="at least one fault"):
        ConfigError()


VALUES = st.none() | st.text() | st.integers(-2, 5000).map(str) | st.ip_addresses().map(str)


@given(
    environ=st.dictionaries(st.sampled_from([*LWS, "MASTER_ADDR", "NNODES", "NODE_RANK"]), VALUES.filter(bool)),
    address=VALUES,
    size=VALUES,
    index=VALUES,
    group_id=VALUES,
)
def test_arbitrary_text_makes_a_valid_group_or_a_config_error_and_nothing_else(
    environ: dict[str, str], address: str | None, size: str | None, index: str | None, group_id: str | None
) -> None:
    try:
        group = parse_group(environ, leader_address=address, size=size, index=index, group_id=group_id)
    except ConfigError as error:
        messages = [error.text(), *(fault.found for fault in error.faults)]
    else:
        assert 0 <= group.index < group.size <= MAX_SIZE
        messages = [group.leader_address, group.id]
    assert all(messages)
