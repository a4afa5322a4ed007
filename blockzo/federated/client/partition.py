"""Which rows each client owns: independent and identical, by Dirichlet shares of the labels, by label, or by a column."""

from __future__ import annotations

import random
from collections.abc import Sequence

PARTITIONS = ("iid", "dirichlet", "label", "column")
_TRIES = 200


def iid(rows: int, clients: int, seed: int) -> list[list[int]]:
    """Shares of equal size, chosen at random."""
    _enough(rows, clients)
    order = list(range(rows))
    random.Random(f"iid {seed}").shuffle(order)
    return [sorted(order[client::clients]) for client in range(clients)]


def dirichlet(labels: Sequence[int], clients: int, alpha: float, seed: int) -> list[list[int]]:
    """The rows of every label, split by shares drawn from Dirichlet(alpha) (Hsu et al., arXiv 1909.06335).

    Small `alpha`: few labels a client and very unequal sizes. Drawn again until every client has a row.

    Raises:
        ValueError: alpha is not positive, or so small that some client gets no row in 200 draws.
    """
    _enough(len(labels), clients)
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}; expected a positive number")
    chance = random.Random(f"dirichlet {seed}")
    for _ in range(_TRIES):
        found: list[list[int]] = [[] for _ in range(clients)]
        for label in sorted(set(labels)):
            rows = [row for row, of in enumerate(labels) if of == label]
            chance.shuffle(rows)
            shares = [chance.gammavariate(alpha, 1.0) for _ in range(clients)]
            total, done, cut = sum(shares), 0.0, 0
            for client, share in enumerate(shares):
                done += share
                end = len(rows) if client == clients - 1 else round(len(rows) * done / total) if total else cut
                found[client] += rows[cut:end]
                cut = end
        if all(found):
            return [sorted(rows) for rows in found]
    raise ValueError(
        f"in {_TRIES} draws with alpha {alpha} some of {clients} clients got no row; take a larger alpha or fewer clients"
    )


def by_label(labels: Sequence[int], clients: int, seed: int, shards: int = 2) -> list[list[int]]:
    """Rows sorted by label and cut into `shards` pieces a client (McMahan et al. 2017): most clients see one or two labels."""
    _enough(len(labels), clients * shards)
    order = list(range(len(labels)))
    chance = random.Random(f"label {seed}")
    chance.shuffle(order)
    order.sort(key=lambda row: labels[row])
    count = clients * shards
    pieces = [order[len(order) * i // count : len(order) * (i + 1) // count] for i in range(count)]
    chance.shuffle(pieces)
    return [sorted(row for piece in pieces[client::clients] for row in piece) for client in range(clients)]


def by_column(values: Sequence[str], clients: int | None = None) -> list[list[int]]:
    """One client for each value of a column, in order of the values; the `clients` with most rows where given."""
    found: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        found.setdefault(value, []).append(row)
    if clients is not None and clients > len(found):
        raise ValueError(f"the column has {len(found)} values, clients is {clients}; give that or fewer")
    kept = sorted(found, key=lambda value: (-len(found[value]), value))[:clients]
    return [found[value] for value in sorted(kept)]


def _enough(rows: int, clients: int) -> None:
    if clients < 1 or rows < clients:
        raise ValueError(f"{rows} rows cannot be split into {clients} parts; give more rows or fewer clients")
