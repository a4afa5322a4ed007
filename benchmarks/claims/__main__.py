"""The claims suite: what blockzo says of itself, measured here and compared with what is committed (docs/benchmarks.md).

blockzo bench --quick                 README's figures in two minutes; exit code 1 where one is outside
blockzo bench                         all claims at full size: many hours; the most telling first
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.claims import listed

FOLDER = Path(__file__).resolve().parents[1]
SAVED = Path("runs/bench/results.csv")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "blockzo bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--output", type=Path, default=SAVED)
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--plot", type=Path)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    given = arguments(words)
    claims = listed.named(given.only)
    if given.list:
        return _list(claims, given.json)
    if given.quick:
        unfit = [claim.name for claim in claims if claim.quick is None]
        if given.only and unfit:
            raise ValueError(f"--quick has no size for {', '.join(unfit)}; leave out --quick")
        claims = [claim for claim in claims if claim.quick is not None]
    return _run(claims, given)


def _list(claims: list[listed.Claim], as_json: bool) -> int:
    from benchmarks.claims import told

    # those that are for others have nothing to run
    single = sorted(path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
    if as_json:
        names = [{"name": one.name, "says": one.says, "quick": one.quick is not None} for one in claims]
        print(json.dumps({"claims": names, "benchmarks": single}, indent=2))
    else:
        print(told.listed(claims, single))
    return 0


def _run(claims: list[listed.Claim], given: argparse.Namespace) -> int:
    import torch

    from benchmarks import harness
    from benchmarks.claims import planner, plot, suite, told

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    facts: dict[str, Any] = {
        "machine": harness.machine(),
        "threads": torch.get_num_threads(),
        "versions": harness.versions(),
        "commit": harness.commit(),
        "load": round(os.getloadavg()[0], 1),
    }
    say(", ".join(f"{name} {value}" for name, value in facts.items()))
    committed = [*harness.read(harness.RESULTS), *planner.committed().rows]
    output = None if given.no_save else given.output
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    work = suite.Suite(claims, given.quick, output, committed, say)
    stopped = False
    try:
        found = work.run()
    except suite.Stopped as end:
        found, stopped = end.found, True
    if given.json:
        print(json.dumps(told.as_json(found, given.quick, facts), indent=2))
    else:
        print(told.text(found, given.quick))
    if given.plot is not None:
        say(f"drawn {given.plot}" if plot.draw(found, given.plot) else "no plot: matplotlib is not installed")
    if output is not None and found:
        say(f"rows are in {output}")
    if stopped:
        say(f"stopped; {len(found)} of {len(claims)} claims are over")
        return 130
    return int(suite.outside(found))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"blockzo bench: {error}")
