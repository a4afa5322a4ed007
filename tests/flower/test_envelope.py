"""Messages in one record, and names of clients."""

from __future__ import annotations

import pytest
from flwr.proto.node_pb2 import NodeInfo
from hypothesis import given
from hypothesis import strategies as st

from blockzo.federated.flower.envelope import MOST_BYTES, MOST_MESSAGES, pack, unpack
from blockzo.federated.flower.identity import Identities


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_what_is_packed_comes_out_again(messages: list[bytes]) -> None:
    assert unpack(pack(messages)) == messages


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_mean_one_thing(data: bytes) -> None:
    try:
        found = unpack(data)
    except ValueError as error:
        assert "expected" in str(error) or "promised" in str(error)
    else:
        assert pack(found) == data


def test_floods_of_small_messages_are_refused_whole() -> None:
    assert unpack(pack([b""] * MOST_MESSAGES)) == [b""] * MOST_MESSAGES
    for count in (MOST_MESSAGES + 1, 20_000):
        with pytest.raises(ValueError, match="more than 64 messages"):
            unpack(pack([b"x"] * count))
    with pytest.raises(ValueError, match="expected at most"):
        unpack(bytes(MOST_BYTES + 1))


def test_a_registered_name_goes_before_what_a_node_says() -> None:
    known = NodeInfo(node_id=7, name="hospital-a", public_key=b"k1")
    identities = Identities("auto", simulated=False)
    assert identities.registered(known) == "hospital-a"
    unnamed = [
        identities.registered(NodeInfo(node_id=n, public_key=k)) for n, k in ((1, b"k1"), (2, b"k1"), (2, b"k2"))
    ]
    # the key names it, whatever its number is today
    assert unnamed[0] == unnamed[1] != unnamed[2]
    simulated = Identities("auto", simulated=True)
    assert simulated.registered(known) is None and simulated.reported({"name": "client-3"}) == "client-3"
    with pytest.raises(ValueError, match="letters"):
        simulated.reported({"name": "../client"})
    with pytest.raises(ValueError, match="expected one of auto"):
        Identities("node-id")
