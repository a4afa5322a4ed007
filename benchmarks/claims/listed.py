"""The list of claims, in order of importance: README's six figures first, then what docs/results.md has beside them.

Modules that measure are imported when they are asked, so that the list costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.claims.claim import Claim


class Measure:
    """A function of this folder by its address, `module:function`."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(self, *told: Any) -> None:
        module, _, function = self.address.partition(":")
        getattr(import_module(f"benchmarks.claims.{module}"), function)(*told)


_SIMULATED = ("MiniLM SST-2 ",)
_COUNT = 1e-4
"""A results file keeps five digits."""
_KERNELS = 0.15

CLAIMS = (
    Claim(
        "federated",
        "Where backpropagation fits, it learns more for less: FedAvg against federated SPZO on SST-2.",
        _SIMULATED,
        ("federated.py accuracy", "federated.py baselines --seeds 0"),
        45,
        metrics=("accuracy", "TFLOP", "FLOPs", "loss of round", "points below", "times fewer FLOPs"),
        headline=0,
        quick=Measure("rounds:flops"),
        seconds=30,
        fixed={
            "TFLOP": _COUNT,
            "FLOPs of the first rounds, counted over formula": 0.0,
            "loss of round 2": 0.01,
            "accuracy": 0.03,
        },
        not_in_quick="the accuracies, which take all rounds; in their place the FLOPs of all rounds are computed from the "
        "shapes of their batches, and the first rounds are run: the counter must agree, and the loss must be the committed one "
        "within 1%",
    ),
    Claim(
        "bytes",
        "An answer of a client has a few bytes at any size of model; with FedAvg it has all weights.",
        _SIMULATED,
        ("federated.py accuracy", "federated.py baselines --seeds 0"),
        45,
        metrics=("bytes up",),
        headline=1,
        quick=Measure("rounds:bytes_up"),
        seconds=1,
        fixed={"bytes up an answer": _COUNT},
    ),
    Claim(
        "losses",
        "The two losses of a MeZO step take about the time of two plain forwards of torch.",
        ("OPT-125M float32", "Llama 134M float32"),
        ("perturbed.py --only step --rounds 7",),
        15,
        headline=2,
        quick=Measure("timed:losses"),
        seconds=37,
        within=0.15,
        fixed={"FLOPs of both losses": _COUNT},
    ),
    Claim(
        "memory",
        "A MeZO step needs the memory of inference.",
        ("MeZO step", "SPZO coupled"),
        ("step.py --rounds 9",),
        10,
        headline=3,
        quick=Measure("timed:memory"),
        ahead=Measure("timed:peaks"),
        seconds=1,
        within=0.05,
        fixed={"counted: FLOPs saved": _COUNT, "formula: FLOPs saved": _COUNT},
    ),
    Claim(
        "catch-up",
        "A client that missed rounds catches up many times faster than by applying them one by one in eager torch.",
        ("catch-up of ",),
        ("federated.py catch-up",),
        3,
        headline=4,
        quick=Measure("timed:catch_up"),
        seconds=20,
        within=0.2,
        fixed={"message": _COUNT},
        not_in_quick="1,000 rounds; 30 are measured, with a committed figure of their own, and eager torch by two directions at "
        "a time",
    ),
    Claim(
        "planner",
        "`auto` needs fewer forward FLOPs than n-SPSA to where n-SPSA ends.",
        ("auto against n-SPSA", "minilm-l6 trec seed 21"),
        (
            "estimators.py --part 1 --csv {folder}/comparison.csv",
            "estimators.py --models minilm-l6 stories15m --tasks sst5 rte --seeds 21 --csv {folder}/comparison.csv",
            "estimators.py --models smollm2-135m --tasks sst2 --methods n-spsa one-sided auto --seeds 21 13 42 "
            "--csv {folder}/comparison.csv",
        ),
        900,
        headline=5,
        quick=Measure("planner:quick"),
        full=Measure("planner:full"),
        seconds=32,
        fixed={
            "FLOPs of the first steps over committed": 0.0,
            "test loss after them over committed": 0.01,
        },
        by_goal=(
            "times fewer forward FLOPs, from the committed runs",
            "test loss below n-SPSA's at the second checkpoint",
        ),
        not_in_quick="the runs, which take hours; the figure is computed again from the committed ones, and the beginning of one "
        "is made again: n-SPSA must cost the committed FLOPs and have the committed loss within 1%, and `auto`, whose "
        "choices may turn on the last bits of a loss, which differ between CPUs, must be ahead of it",
    ),
    Claim(
        "kernels",
        "Kernels that move weights run at the speed of memory.",
        ("perturb_", "replay_", "call"),
        ("kernels.py",),
        10,
        within=_KERNELS,
    ),
    Claim(
        "forwards",
        "Perturbed forwards: bfloat16, batches of directions, bits and memory.",
        ("OPT-125M", "Llama 134M", "stories15M bfloat16"),
        ("perturbed.py --only bfloat16 groups bits memory",),
        45,
        metrics=("evaluation faster", "max_group", "perturbed: weights", "in place:", "peak", "kept"),
    ),
    Claim(
        "own-directions",
        "A direction for each example costs little more than one for all.",
        ("16 x ", "update_ 64 directions"),
        ("rows.py --only linear update --rounds 7",),
        10,
        within=_KERNELS,
    ),
    Claim(
        "backend",
        "The operations in loops of others: many seeds in one pass, MeZO's loop, numbers in memory.",
        ("update_ 30 seeds", "update_ 100 M", "update_ 25 M", "fill_", "MeZO port", "momentum"),
        ("backend.py --rounds 3",),
        15,
        within=_KERNELS,
    ),
    Claim(
        "trainer",
        "A step through Hugging Face's Trainer costs the plain step.",
        ("mezo, ",),
        ("trainer.py --only mezo",),
        5,
    ),
    Claim(
        "liars",
        "A quarter of the clients may lie where the mean is trimmed.",
        ("MiniLM SST-2 trimmed mean",),
        ("federated.py liars",),
        30,
    ),
    Claim(
        "decomfl",
        "FedSPZO needs fewer FLOPs than a DeComFL-like baseline.",
        ("smollm2-135m SST-2",),
        ("decomfl.py smollm2-135m",),
        240,
    ),
    Claim("main-job", "The demonstration learns to sort questions.", ("demo, ",), ("main_job.py",), 20),
    Claim("squad", "Written answers: F1 of LoRA over zero-shot.", ("SQuAD, ",), ("squad.py",), 140),
    Claim("sft", "SFTTrainer with LoRA: the held-out loss falls.", ("SFTTrainer ",), ("sft_lora.py",), 90),
)


def named(names: list[str]) -> list[Claim]:
    """The claims with these names, in the list's order; all where there is no name.

    Raises:
        ValueError: a name that no claim has.
    """
    known = {claim.name: claim for claim in CLAIMS}
    for name in names:
        if name not in known:
            raise ValueError(f"claim is {name!r}; expected of {', '.join(known)}")
    return [claim for claim in CLAIMS if not names or claim.name in names]
