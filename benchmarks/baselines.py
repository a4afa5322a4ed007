"""The baselines of benchmarks/baselines/ on one model at equal settings, blockzo's own forms between them.

    python benchmarks/baselines.py [--model opt-125m] [--sides ...] [--only time memory flops bytes]
    python benchmarks/baselines.py --upstream mezo=PATH decomfl=PATH

time    a step over one plain forward, in turns: CPU seconds of the process, one thread.
memory  peak of a step over inference, each in a process of its own.
flops   a step, by torch's FlopCounterMode; blockzo's by its own counter (its kernels are none of torch's operators).
bytes   what a client would send in a round of one step.

--upstream measures a checkout of princeton-nlp/MeZO or ZidongLiu/DeComFL beside ours: it is imported in a process of its own,
nothing of it is copied, and steps of both take turns. The loss is the language model's own, of all positions.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("BLOCKZO_REQUIRE_NATIVE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.baselines.compare import PARTS, beside_upstream, run_for_peak
from benchmarks.baselines.sides import SIDES
from benchmarks.baselines.upstream import checked
from benchmarks.harness import RESULTS, Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="opt-125m", choices=["opt-125m", "tiny"])
    parser.add_argument("--batch", nargs=2, type=int, default=(2, 32), metavar=("ROWS", "TOKENS"))
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=list(SIDES), metavar="SIDE")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--upstream", nargs="*", default=[], metavar="NAME=PATH", type=checked)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--csv", type=Path, default=RESULTS)
    parser.add_argument("--peak", choices=["inference", *SIDES], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        return run_for_peak(options)
    table = Table("baselines", options.csv)
    for part in [beside_upstream] if options.upstream else [PARTS[name] for name in options.only]:
        part(table, options)
        if not options.no_save:
            table.save()


if __name__ == "__main__":
    main()
