"""Federated rounds on SST-2 with a real model: FedSPZO against a centralised run, a DeComFL-like baseline and FedAvg; liars.

    python benchmarks/federated.py accuracy [--rounds 240] [--seeds 0 1 2] [--no-save]      a quarter of an hour on two cores
    python benchmarks/federated.py baselines [--seeds 0 1 2] [--no-save]
    python benchmarks/federated.py liars [--seeds 0 1 2] [--no-save]          half an hour on one core
    python benchmarks/federated.py catch-up [--no-save]                       some minutes

MiniLM-L6 with a new linear head; 8 clients, 2 sampled, Dirichlet 0.5 (liars: all 8, 60 rounds). Learning
rates are chosen by one rule for each method: the lowest held-out loss of 256 rows at the end of runs on seed 100, which is not
used for figures (a grid of single rates goes on while its best lies at an end). Those runs have the FLOPs of 120 rounds and
rates that fall to 0 along a line, as the runs that count; for the baselines from a new head they have 40 rounds and constant
rates. A run that is there (runs/federated/NAME/summary.json) is read and not repeated.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import simulated_runs
from benchmarks.harness import Spread, Table
from benchmarks.simulated_runs import compare, final_loss, note_ratios, search

COMMON = "--model minilm-l6 --task sst2 --batch 16 --clients 8 --partition dirichlet --alpha 0.5".split()
SPZO = "--method spzo --variant decoupled --split head --outer 1 --inner 32".split()
ONE_SIDED = "--method one-sided --directions 5".split()
RATES = {
    "spzo": ["1.5e-4,0.1", "5e-5,0.1", "1.5e-5,0.1", "1.5e-5,0.3", "1.5e-5,1"],
    "decomfl": ["8e-5", "2.5e-4", "7.5e-4", "2.2e-3"],
    "fedavg": ["0.01", "0.03", "0.1", "0.3"],
}
FALLING = ["--schedule", "linear"]
ROUNDS, COLD_ROUNDS, TUNING_ROUNDS, LIAR_ROUNDS, WARM_ROUNDS = 240, 120, 120, 60, 6
TUNING_SEED = 100
TUNED_SHORT = 40
"""Rounds in which the rates of baselines from a new head are tried; constant ones."""
COMPARED = "2.5e-4"
"""What docs/comparison.md's rule chose for one-sided on this model and task, from a trained head."""
LIAR_RATES = "1.5e-5,0.3"
"""What the rule chose for FedSPZO (`accuracy`)."""


def run(name: str, *options: str) -> dict[str, Any]:
    return simulated_runs.run(f"federated/{name}", *COMMON, *options)


METHODS = {
    "spzo": ([*SPZO, "--sample", "2"], 1.0),
    "decomfl": ([*ONE_SIDED, "--sample", "2"], 0.5),
    "fedavg": (["--engine", "fedavg", "--method", "mezo", "--sample", "2"], 1.0),
}
"""Options, and rounds of this method that cost the FLOPs of one round of SPZO: 3 whole forwards a client, 6 of one-sided."""


def rate(method: str, rounds: int, *more: str, prefix: str = "") -> str:
    """The best of its grid; where that lies at an end of a grid of single rates, the grid goes on by factors of 3.

    Args:
        rounds: of SPZO, in whose FLOPs every rate is tried.
        more: further options of those runs.
        prefix: of their names.
    """
    options, share = METHODS[method]
    last = str(round(share * rounds))

    def loss_of(lr: str) -> float:
        told = ["--seed", str(TUNING_SEED), "--lr", lr, "--rounds", last, "--eval-every", last]
        ends = ["--eval-rows", "256", "--final-rows", "256"]
        return final_loss(f"federated/{prefix}tune-{method}-{lr}", *COMMON, *options, *told, *ends, *more)

    return search(RATES[method], loss_of)


def note(table: Table, case: str, result: dict[str, Any]) -> float:
    after = float(result["after"]["accuracy"])
    print(f"{case}: accuracy {after:.4f}, {result['flops']:.4g} FLOPs, up {result['bytes_up']}", flush=True)
    table.add(f"MiniLM SST-2 {case}", "accuracy", Spread.of([after]), "")
    table.add(f"MiniLM SST-2 {case}", "TFLOP", Spread.of([result["flops"] / 1e12]), "TFLOP")
    table.add(f"MiniLM SST-2 {case}", "bytes up an answer", Spread.of([result["bytes_up_of_an_answer"]]), "B")
    return after


def accuracy(seeds: list[int], rounds: int, table: Table) -> None:
    lr = rate("spzo", TUNING_ROUNDS, *FALLING, prefix="falling-")
    gaps: dict[str, list[float]] = {}
    for seed in seeds:
        told = ["--seed", str(seed), "--lr", lr, "--rounds", str(rounds), *FALLING]
        told += ["--eval-every", str(rounds // 12), "--eval-rows", "436"]
        ours = run(f"spzo-{rounds}-{seed}", *METHODS["spzo"][0], *told)
        # one owner of all rows, with the batch of the two clients
        alone = ["--clients", "1", "--sample", "1", "--partition", "iid", "--batch", "32"]
        central = run(f"central-{rounds}-{seed}", *SPZO, *alone, *told)
        adjusted = run(f"adjusted-{rounds}-{seed}", *METHODS["spzo"][0], "--logit-adjustment", *told)
        goal = note(table, f"central, {rounds} rounds, seed {seed}", central)
        for kind, one in (("FedSPZO", ours), ("FedSPZO with logit adjustment", adjusted)):
            gap = 100 * (goal - note(table, f"{kind}, {rounds} rounds, seed {seed}", one))
            gaps.setdefault(kind, []).append(gap)
            print(f"seed {seed}: {kind} {gap:+.2f} points below centralised", flush=True)
    for kind, found in gaps.items():
        table.add(f"MiniLM SST-2 {kind}", "points below centralised", Spread.of(found), "points", at_most=1.5)
        most = "points below centralised, most of the seeds"
        table.add(f"MiniLM SST-2 {kind}", most, Spread.of([max(found)]), "points", at_most=1.5)


def baselines(seeds: list[int], table: Table) -> None:
    """DeComFL-like and FedAvg from a new head; and DeComFL-like and FedSPZO from one that was trained alone for a while."""
    for method in ("decomfl", "fedavg"):
        lr = rate(method, TUNED_SHORT)
        for seed in seeds:
            note(table, f"{method}, new head, seed {seed}", run(f"{method}-{seed}", *in_equal_flops(method, seed, lr)))
    start = ["--method", "tree", "--levels", "0,32", "--split", "head", "--lr", "0.3"]
    start += ["--partition", "iid", "--seed", str(TUNING_SEED), "--sample", "2"]
    run("warm", *start, "--rounds", str(WARM_ROUNDS), "--eval-every", str(WARM_ROUNDS))
    warm, ratios = ["--model", "runs/federated/warm/model"], []
    # FedSPZO's is not chosen anew
    rates = {"decomfl": COMPARED, "spzo": rate("spzo", TUNING_ROUNDS, *FALLING, prefix="falling-")}
    for seed in seeds:
        for method, lr in rates.items():
            result = run(f"warm-{method}-{seed}", *in_equal_flops(method, seed, lr), *warm)
            note(table, f"{method}, trained head, seed {seed}", result)
        ratios.append(compare(f"federated/warm-decomfl-{seed}", f"federated/warm-spzo-{seed}"))
    note_ratios(table, "MiniLM SST-2 FedSPZO", ratios)


def in_equal_flops(method: str, seed: int, lr: str) -> list[str]:
    options, share = METHODS[method]
    rounds = round(share * COLD_ROUNDS)
    told = ["--seed", str(seed), "--lr", lr, "--rounds", str(rounds), *FALLING]
    return [*options, *told, "--eval-every", str(rounds // 12), "--eval-rows", "436"]


def liars(seeds: list[int], table: Table) -> None:
    lost = []
    for seed in seeds:
        told = [*SPZO, *FALLING, "--logit-adjustment", "--sample", "8", "--seed", str(seed), "--lr", LIAR_RATES]
        told += ["--rounds", str(LIAR_ROUNDS), "--eval-every", str(LIAR_ROUNDS)]
        trimmed = ["--aggregate", "trimmed-mean", "--trim", "0.25"]
        clean = run(f"clean-{seed}", *told, *trimmed)["after"]["accuracy"]
        mean = run(f"mean-{seed}", *told)["after"]["accuracy"]
        lied = run(f"lied-{seed}", *told, *trimmed, "--liars", "0.25")["after"]["accuracy"]
        lost.append(100 * (clean - lied))
        print(f"seed {seed}: clean {clean:.4f} (mean {mean:.4f}), a quarter lies {lied:.4f}", flush=True)
        for case, value in (("clean", clean), ("clean, mean", mean), ("a quarter lies", lied)):
            table.add(f"MiniLM SST-2 trimmed mean seed {seed}", f"accuracy {case}", Spread.of([value]), "")
    table.add("MiniLM SST-2 trimmed mean", "points lost to liars", Spread.of(lost), "points", at_most=2)


def catch_up(table: Table, rounds: int = 1000, times: int = 1, beside: int = 3, timed: int = 10) -> None:
    """A client that missed `rounds` of 10 directions, OPT-125M shape, float32: from the bytes of the message to the weights.

    Against applying the rounds one by one in eager torch, with noise of torch's generator in one buffer: `beside` rounds of it
    (of each `timed` directions) are timed before and as many after, and the median is taken times `rounds`. Copies of the
    weights, one a direction, are the limit of whatever passes over memory for each direction, and are timed beside them.
    """
    import torch

    import blockzo as bz
    from blockzo.federated.protocol.records import decode_record, encode_record, make_record
    from blockzo.federated.protocol.settings import RunSettings

    count = 10
    # no forward is run, so no time goes into random weights
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(50272, 768)})
        for layer in range(12):
            model[f"attention{layer}"] = torch.nn.Linear(768, 4 * 768)
            model[f"wide{layer}"] = torch.nn.Linear(768, 3072)
            model[f"narrow{layer}"] = torch.nn.Linear(3072, 768)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    weights = sum(p.numel() for p in model.parameters())
    method = {"name": "OneSided", "directions": count}
    settings = RunSettings(secrets.token_hex(16), method, (count,), rounds, lr=(1e-6,), eps=(1e-3,))
    numbers = tuple(range(count))
    made = [make_record(settings, r, 0.5, [numbers], [(1e-6,) * count], settings.rates(r)) for r in range(rounds)]
    message = b"".join(encode_record(record, settings) for record in made)
    buffer = [torch.empty_like(p) for p in model.parameters()]

    def eager() -> float:
        begin = time.perf_counter()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _ in range(timed):
                for p, z in zip(model.parameters(), buffer, strict=True):
                    z.random_(0, 2, generator=generator).mul_(2).sub_(1)
                    p.sub_(z, alpha=1e-6)
        return (time.perf_counter() - begin) * count / timed

    def copied() -> float:
        begin = time.perf_counter()
        with torch.no_grad():
            for p, z in zip(model.parameters(), buffer, strict=True):
                z.copy_(p)
        return time.perf_counter() - begin

    def ours() -> tuple[float, float]:
        begin = time.perf_counter()
        records, at = [], 0
        for number in range(rounds):
            record, at = decode_record(message, at, number, settings)
            records.append(record)
        decoded = time.perf_counter() - begin
        bz.replay_(model, records)
        return time.perf_counter() - begin, decoded

    spent, one_by_one, copies = [], [], []
    for _ in range(times):
        around = [eager() for _ in range(beside)]
        copies.append(copied() * rounds * count)
        seconds, decoded = ours()
        around += [eager() for _ in range(beside)]
        spent.append(seconds)
        one_by_one.append(statistics.median_high(around) * rounds)
        told = f"{seconds:.1f} s ({decoded:.3f} s to read {len(message)} bytes), eager {one_by_one[-1]:.0f} s"
        print(f"{weights / 1e6:.1f} M weights: {told}", flush=True)
    case = f"catch-up of {rounds} rounds of {count} directions, 125M float32"
    ratios = Spread.of([other / own for other, own in zip(one_by_one, spent, strict=True)])
    table.add(case, "times faster than eager one by one", ratios, "x", target=50)
    ratios = Spread.of([other / own for other, own in zip(copies, spent, strict=True)])
    table.add(case, "times faster than copying the weights for each direction", ratios, "x")
    table.add(case, "seconds", Spread.of(spent), "s")
    table.add(case, "message", Spread.of([len(message)]), "B")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "baselines", "liars", "catch-up"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of accuracy")
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    table = Table("federated")
    if given.what == "catch-up":
        catch_up(table)
    elif given.what == "accuracy":
        accuracy(given.seeds, given.rounds, table)
    else:
        {"baselines": baselines, "liars": liars}[given.what](given.seeds, table)
    if not given.no_save:
        table.save()


if __name__ == "__main__":
    main()
