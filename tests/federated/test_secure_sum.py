"""Secure sums: exact whoever drops out and when, nothing else to be seen, wrong shares and messages refused."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import blockzo as bz
from blockzo.federated.protocol import sum_messages as s
from blockzo.federated.protocol.combine import Contribution, combine, weights_of
from blockzo.federated.protocol.estimate import Estimate
from blockzo.federated.protocol.sum_messages import session_of
from blockzo.federated.secagg import crypto, shamir
from blockzo.federated.secagg.fixed_point import WORD, FixedPoint, from_words, to_words
from blockzo.federated.secagg.sum_client import SumClient, threshold_of
from blockzo.federated.secagg.sum_server import SumServer
from blockzo.federated.secagg.values import decoded, encoded
from blockzo.federated.sums import SumError
from tests.federated.problem import settings

LENGTH = 5
SESSION = session_of(b"12345678", 3)


class Sum:
    """A server and clients, phase by phase; `lost` are names whose messages of a phase do not arrive."""

    def __init__(self, clients: int, length: int = LENGTH, seed: int = 0) -> None:
        chance = random.Random(seed)
        self.server = SumServer(SESSION, length)
        self.clients = {f"c{i}": SumClient(SESSION, length) for i in range(clients)}
        self.values = {name: [chance.randrange(-(1 << 52), 1 << 52) for _ in range(length)] for name in self.clients}
        self.sent: dict[str, bytes] = {}
        self.late: dict[str, bytes] = {}

    def exact(self, names: Iterable[str]) -> list[int]:
        return [sum(column) for column in zip(*(self.values[name] for name in names), strict=True)]

    def _phase(
        self,
        lost: Iterable[str],
        answer: Callable[[str], bytes],
        take: Callable[[str, bytes], None],
        names: Iterable[str],
    ) -> None:
        for name in names:
            data = answer(name)
            if name in lost:
                self.late[name] = data
            else:
                take(name, data)

    def advertise(self, lost: Iterable[str] = ()) -> Sum:
        self._phase(lost, lambda n: self.clients[n].advertise(), self.server.advertised, self.clients)
        self.sent = self.server.roster()
        return self

    def share(self, lost: Iterable[str] = ()) -> Sum:
        self._phase(lost, lambda n: self.clients[n].share(self.sent[n]), self.server.dealt, self.sent)
        self.sent = self.server.deliveries()
        return self

    def mask(self, lost: Iterable[str] = ()) -> Sum:
        self._phase(lost, lambda n: self.clients[n].mask(self.sent[n], self.values[n]), self.server.masked, self.sent)
        self.sent = self.server.survivors()
        return self

    def unmask(self, lost: Iterable[str] = ()) -> Sum:
        self._phase(lost, lambda n: self.clients[n].unmask(self.sent[n]), self.server.unmasked, self.sent)
        return self


def subsets(names: list[str]) -> Iterable[tuple[str, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(names, size) for size in range(len(names) + 1))


# the sum


@pytest.mark.parametrize("clients", [4, 5])
@pytest.mark.parametrize("phase", ["advertise", "share", "mask", "unmask"])
def test_every_subset_may_drop_out_in_every_phase(clients: int, phase: str) -> None:
    for lost in subsets([f"c{i}" for i in range(clients)]):
        run = Sum(clients, seed=len(lost))
        left = clients - len(lost)
        needed = 2 if phase == "advertise" else threshold_of(clients)
        try:
            for each in ("advertise", "share", "mask", "unmask"):
                getattr(run, each)(lost if each == phase else ())
            found = run.server.total()
        except SumError:
            assert left < needed, lost
            continue
        assert left >= needed, lost
        # who vanishes after its masked integers arrived is in the sum
        names = list(run.clients) if phase == "unmask" else [n for n in run.clients if n not in lost]
        assert found == run.exact(names) and sorted(run.server.survivors_names) == sorted(names)


def test_dropouts_in_several_phases_of_one_sum() -> None:
    for lost in itertools.permutations([f"c{i}" for i in range(7)], 3):
        run = Sum(7)
        run.advertise().share(lost[:1]).mask(lost[1:2]).unmask(lost[2:])
        assert run.server.total() == run.exact(n for n in run.clients if n not in lost[:2])


@given(st.integers(2, 6), st.data())
@hypothesis_settings(max_examples=25)
def test_the_sum_is_exact(clients: int, data: st.DataObject) -> None:
    run = Sum(clients, 3)
    most = ((1 << 63) - 1) // clients
    value = st.integers(-most, most)
    run.values = {name: data.draw(st.lists(value, min_size=3, max_size=3)) for name in run.clients}
    assert run.advertise().share().mask().unmask().server.total() == run.exact(run.clients)


def test_masked_integers_tell_nothing_alone() -> None:
    """Equal integers give different masked ones; those of a client that was given up stay hidden from what the server holds."""
    seen = []
    for _ in range(2):
        run = Sum(4, 512)
        run.values = {name: [7] * 512 for name in run.clients}
        run.advertise().share().mask(["c2"]).unmask()
        assert run.server.total() == [21] * 512
        seen.append(np.frombuffer(run.late["c2"][1 + s.SESSION :], dtype="<u8").copy())
        # the server could take all pair masks of the late client away: what is left is under its own mask
        number = run.server.numbers["c2"]
        key = crypto.key_from(run.server._recovered(number))
        left = seen[-1]
        for name, other in run.server.numbers.items():
            if name != "c2":
                pair = crypto.stream(crypto.agreed(key, run.server._keys[name].mask, run.server.bound, b"mask"), 512)
                left = left - pair if other > number else left + pair
        assert len(set(left.tolist())) > 500
        with pytest.raises(SumError, match="late"):
            run.server.masked("c2", run.late["c2"])
    assert not (seen[0] == seen[1]).any()


def test_masks_look_uniform() -> None:
    run = Sum(3, 4096)
    run.values = {name: [0] * 4096 for name in run.clients}
    run.advertise().share().mask()
    for words in run.server._masked.values():
        ones = sum(bin(int(word)).count("1") for word in words)
        # 2^18 fair bits: eight standard deviations
        assert abs(ones - 32 * 4096) < 8 * math.sqrt(64 * 4096) / 2


# who does not follow the protocol


def test_wrong_shares_are_refused_and_named() -> None:
    run = Sum(5).advertise().share().mask(["c4"])
    for name in run.sent:
        data = run.clients[name].unmask(run.sent[name])
        if name == "c1":
            data = data[:40] + bytes((data[40] ^ 1,)) + data[41:]
        run.server.unmasked(name, data)
    assert run.server.wrong_shares == {"c1": 1}
    assert run.server.total() == run.exact(["c0", "c1", "c2", "c3"])


def test_too_many_wrong_shares_end_the_sum() -> None:
    run = Sum(4).advertise().share().mask()
    for name in run.sent:
        data = run.clients[name].unmask(run.sent[name])
        wrong = {"c2": b"\1", "c3": b"\0"}.get(name)
        run.server.unmasked(
            name, data if wrong is None else data[: 1 + s.SESSION] + wrong * (len(data) - 1 - s.SESSION)
        )
    # zeros stand for what a holder could not read
    assert run.server.wrong_shares == {"c2": 4}
    with pytest.raises(SumError, match="2 right shares of 4; expected 3") as caught:
        run.server.total()
    assert caught.value.client == "c0"


def test_too_few_answers_are_nobodys_fault() -> None:
    run = Sum(4).advertise().share().mask().unmask(["c2", "c3"])
    with pytest.raises(SumError, match="2 clients gave shares; expected 3") as caught:
        run.server.total()
    assert caught.value.client is None


@pytest.mark.parametrize(("secret", "reason"), [("_seed", "another seed"), ("_mask_key", "another key")])
def test_a_dealer_whose_shares_give_something_else_is_named(secret: str, reason: str) -> None:
    run = Sum(4).advertise()
    liar = run.clients["c2"]
    honest = getattr(liar, secret)
    wrong = crypto.new_key() if secret == "_mask_key" else bytes(32)
    for name in run.sent:
        if name == "c2":
            setattr(liar, secret, wrong)
        data = run.clients[name].share(run.sent[name])
        if name == "c2" and secret == "_seed":
            promised = s.commitment(honest, SESSION, liar._number, 0)
            data = data[: 1 + s.SESSION] + promised + data[1 + s.SESSION + s.COMMITMENT :]
        run.server.dealt(name, data)
    run.sent = run.server.deliveries()
    run.mask(["c2"] if secret == "_mask_key" else []).unmask()
    with pytest.raises(SumError, match=f"'c2'.*{reason}"):
        run.server.total()


def test_damaged_and_foreign_shares_between_clients_are_not_used() -> None:
    """A sealed share that was changed on its way is missed at recovery, by its holder alone."""
    run = Sum(5).advertise().share()
    at = 1 + s.SESSION + (4 + s.CIPHER) * (run.server.numbers["c4"] - 1) + 20
    data = run.sent["c0"]
    run.sent["c0"] = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
    run.mask(["c4"]).unmask()
    assert len(run.server._shares[run.server.numbers["c4"]]) == 3
    assert run.server.total() == run.exact(["c0", "c1", "c2", "c3"]) and not run.server.wrong_shares


def test_a_client_answers_once_and_only_for_enough() -> None:
    run = Sum(4).advertise().share().mask()
    client, asked = run.clients["c0"], run.sent["c0"]
    few = s.pack(s.SURVIVORS, SESSION, s.pack_members([1, 2]))
    without = s.pack(s.SURVIVORS, SESSION, s.pack_members([2, 3, 4]))
    for request, name in ((few, "c1"), (without, "c0")):
        with pytest.raises(SumError, match="survivors"):
            run.clients[name].unmask(request)
    with pytest.raises(SumError, match="once"):
        client.unmask(asked)
    with pytest.raises(SumError, match="once"):
        client.mask(asked, [0] * LENGTH)


def test_rosters_and_deliveries_that_are_wrong() -> None:
    client = SumClient(SESSION, LENGTH)
    client.advertise()
    with pytest.raises(SumError, match="does not hold"):
        client.share(Sum(3).advertise().sent["c0"])
    lonely = SumClient(SESSION, LENGTH)
    own = lonely.advertise()
    with pytest.raises(SumError, match="2 to"):
        lonely.share(s.pack(s.ROSTER, SESSION, own[1 + s.SESSION :]))
    run = Sum(4).advertise().share()
    cut = run.sent["c0"][: 1 + s.SESSION + 2 * (4 + s.CIPHER)]
    with pytest.raises(SumError, match="dealt shares"):
        run.clients["c0"].mask(cut, run.values["c0"])
    with pytest.raises(SumError, match="integers"):
        run.clients["c1"].mask(run.sent["c1"], [1])
    other = Sum(2).advertise()
    with pytest.raises(SumError, match="no message"):
        other.clients["c0"].share(s.pack(s.ROSTER, session_of(b"12345678", 4), other.sent["c0"][1 + s.SESSION :]))


def test_messages_that_the_server_refuses() -> None:
    run = Sum(3)
    server = run.server
    first = run.clients["c0"].advertise()
    server.advertised("c0", first)
    for name, data, reason in (
        ("c0", first, "twice"),
        ("c9", first, "another client's"),
        ("c9", b"", "no message"),
        ("c9", first[:-1], "payload"),
        ("c9", s.pack(s.ADVERTISE, SESSION, bytes(32), run.clients["c1"].keys.mask), "nothing secret"),
    ):
        with pytest.raises(SumError, match=reason):
            server.advertised(name, data)
    with pytest.raises(SumError, match="needs 2"):
        server.roster()
    for name in ("c1", "c2"):
        server.advertised(name, run.clients[name].advertise())
    roster = server.roster()
    deal = run.clients["c0"].share(roster["c0"])
    for name, data in (("c8", deal), ("c0", deal[:-1])):
        with pytest.raises(SumError):
            server.dealt(name, data)
    server.dealt("c0", deal)
    with pytest.raises(SumError, match="twice"):
        server.dealt("c0", deal)
    with pytest.raises(SumError, match="cannot end"):
        server.survivors()
    with pytest.raises(SumError, match="phase"):
        server.total()


@given(st.binary(max_size=400))
def test_noise_instead_of_messages(data: bytes) -> None:
    run = Sum(2)
    with pytest.raises(SumError):
        run.server.advertised("c0", data)
    client = run.clients["c0"]
    client.advertise()
    with pytest.raises(SumError):
        client.share(data)


# parts


@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.data())
@hypothesis_settings(max_examples=50)
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, threshold: int, data: st.DataObject) -> None:
    shares = dict(enumerate(shamir.split(secret, threshold, 6), 1))
    chosen = data.draw(st.permutations(list(shares)))[:threshold]
    assert shamir.join({x: shares[x] for x in chosen}, threshold) == secret
    with pytest.raises(ValueError, match="shares"):
        shamir.join({x: shares[x] for x in chosen[:-1]}, threshold)


def test_shares_below_the_threshold_fit_every_secret() -> None:
    """With two of three shares, every secret is a polynomial of the right degree through them: they exclude none."""
    shares = shamir.split(bytes(32), 3, 3)
    known = {1: shares[0], 2: shares[1]}
    found = {shamir.join({**known, 3: y.to_bytes(33, "little")}, 3) for y in range(1, 1 << 10) if joins(known, y)}
    assert len(found) > 1000
    values = [int.from_bytes(share, "little") for _ in range(200) for share in shamir.split(bytes(32), 2, 2)]
    assert len(set(values)) == 400 and sum(value >> 255 for value in values) > 100


def joins(known: dict[int, bytes], y: int) -> bool:
    try:
        shamir.join({**known, 3: y.to_bytes(33, "little")}, 3)
    except ValueError:
        return False
    return True


def test_the_field_is_one() -> None:
    """Miller-Rabin with forty bases."""
    odd, twos = shamir.PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        x = pow(base, odd, shamir.PRIME)
        assert x in (1, shamir.PRIME - 1) or any(
            pow(x, 1 << k, shamir.PRIME) == shamir.PRIME - 1 for k in range(1, twos)
        )
    with pytest.raises(ValueError, match="field"):
        shamir.join({1: b"\xff" * 33}, 1)
    with pytest.raises(ValueError, match="threshold"):
        shamir.split(bytes(32), 4, 3)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.integers(1, 1000)), min_size=1, max_size=9))
def test_fixed_point_sums_are_within_rounding(given: list[tuple[float, int]]) -> None:
    fixed = FixedPoint(bits=20, terms=9)
    found = [fixed.encode(value, times) for value, times in given]
    total = from_words([sum(to_words(found)) % WORD])[0]
    assert total == sum(found)
    exact = sum(Fraction(value) * times for value, times in given)
    assert abs(Fraction(total, 1 << 20) - exact) <= Fraction(len(given), 1 << 21)
    assert fixed.decode(total) == float(Fraction(total, 1 << 20))


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_words(value: int) -> None:
    assert from_words(to_words([value])) == [value]


@pytest.mark.parametrize(("value", "times"), [(math.nan, 1), (math.inf, 1), (1e9, 1000), (-1e9, 1000)])
def test_fixed_point_refuses_what_a_sum_could_not_hold(value: float, times: int) -> None:
    fixed = FixedPoint(bits=24, terms=1000)
    with pytest.raises(ValueError, match="finite|too large"):
        fixed.encode(value, times)
    assert fixed.encode(fixed.largest * 0.999) * 1000 < 1 << 63
    with pytest.raises(ValueError, match="bits"):
        FixedPoint(bits=63)


# what is summed


@pytest.mark.parametrize("weighting", ["examples", "equal"])
def test_the_sum_says_the_mean_that_the_server_would_have_made(weighting: str) -> None:
    chance = random.Random(2)
    run = settings(weighting=weighting)
    found = [Estimate(tuple(chance.gauss(0, 50) for _ in range(run.scalars)), chance.random(), 8 + i) for i in range(5)]
    total = [sum(column) for column in zip(*(encoded(one, run) for one in found), strict=True)]
    mean = decoded(total, run, 5)
    plain = [Contribution(e.scalars, e.examples, e.loss) for e in found]
    assert mean.scalars == pytest.approx(combine(plain, run), abs=5 / (1 << 21))
    shares = weights_of(plain, run)
    loss = math.fsum(share * c.loss for share, c in zip(shares, plain, strict=True))
    assert mean.loss == pytest.approx(loss, abs=5 / (1 << 21))
    assert mean.examples == (sum(c.examples for c in plain) if weighting == "examples" else 5)


def test_what_cannot_be_summed_is_refused_without_telling_it() -> None:
    run = settings(bz.MeZO())
    with pytest.raises(ValueError, match="expected 2"):
        encoded(Estimate((1.0,), 0.5, 1), run)
    for value in (math.nan, 123456789012.0):
        with pytest.raises(ValueError, match="not finite, or too large") as caught:
            encoded(Estimate((1.0, value), 0.5, 1), run)
        assert "1.23" not in str(caught.value)
    with pytest.raises(SumError, match="examples"):
        decoded([1, 0, 0, 0], run, 1)
    with pytest.raises(SumError, match="3 clients claims 2"):
        decoded([2 << 20, 0, 0, 0], settings(bz.MeZO(), weighting="equal"), 3)
