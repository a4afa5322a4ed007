"""Who a node is: what the SuperLink vouches for, never Flower's node id, which changes from run to run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from blockzo.federated.flower.places import checked_name

IDENTITIES = ("auto", "registered", "reported")


class Identities:
    """Names of clients.

    Args:
        kind: "registered": the name a node's key was registered under, else a fingerprint of the key; "reported": what the node
            says of itself, which nobody checks; "auto": reported in a simulation, else registered.
        simulated: is this a simulation?
    """

    def __init__(self, kind: str = "auto", simulated: bool = False) -> None:
        if kind not in IDENTITIES:
            raise ValueError(f"identity is {kind!r}; expected one of {', '.join(IDENTITIES)}")
        self.kind = kind if kind != "auto" else ("reported" if simulated else "registered")

    def registered(self, node: Any) -> str | None:
        """Name of a node (Flower's NodeInfo), or None where it has to introduce itself first."""
        if self.kind != "registered":
            return None
        if node.name:
            return checked_name(node.name)
        return "key-" + hashlib.blake2s(bytes(node.public_key), digest_size=8, person=b"bz-node").hexdigest()

    def reported(self, about: Mapping[str, Any]) -> str:
        return checked_name(str(about.get("name", "")))
