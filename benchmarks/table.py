"""The tables of docs/results.md and docs/paper-shapes.md, and the README's headlines, drawn from `benchmarks/results.csv` alone.

python benchmarks/table.py [--write]        prints the first, or puts all into their files between two marks
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparison import report, store
from benchmarks.harness import RESULTS, read
from benchmarks.shapes import report as shapes

ROOT = Path(__file__).resolve().parents[1]
PAGE, README, PAPER = ROOT / "docs" / "results.md", ROOT / "README.md", ROOT / "docs" / "paper-shapes.md"
BEGIN, END = "<!-- from benchmarks/results.csv: python benchmarks/table.py --write -->", "<!-- end -->"
ADD, EAGER = "speed relative to add_", "times faster than torch.normal"
SHOWN = {
    (
        "perturb_ rademacher float32",
        ADD,
    ): "`perturb_` Rademacher float32, 64 Mi weights: speed of `tensor.add_(scalar)`",
    ("perturb_ rademacher bfloat16", ADD): "the same, bfloat16",
    ("perturb_ gaussian float32", ADD): "`perturb_` Gaussian float32: speed of `tensor.add_(scalar)`",
    ("perturb_ rademacher float32", EAGER): "`perturb_` Rademacher float32 against `torch.normal`, multiply, add",
    ("perturb_ gaussian float32", EAGER): "the same, Gaussian",
    (
        "replay_ 1000 rademacher float32",
        "times faster than one by one",
    ): "`replay_` of 1,000 Rademacher updates of 16 Mi float32 weights against one by one",
    (
        "MeZO step perturbed",
        "share beyond two forwards",
    ): "MeZO step, OPT-125M shape, 8 x 32 tokens, float32: share beyond two plain forwards",
    ("MeZO step in place", "share beyond two forwards"): "the same, in place",
    ("MeZO step bfloat16 perturbed", "over two forwards"): "that step in bfloat16, over two plain forwards",
    ("MeZO step perturbed", "peak RSS over inference"): "peak memory of the float32 step over inference",
    (
        "SPZO coupled 1 x 4",
        "counted: FLOPs saved",
    ): "SPZO coupled, split in half, inner 4: FLOPs against n-SPSA with as many late directions",
    ("SPZO coupled 1 x 4", "measured: time saved"): "the same, wall time",
    ("demo, seed 0", "gain over calibrated zero-shot"): "main job: accuracy over calibrated zero-shot, seed 0",
    ("demo, seed 1", "gain over calibrated zero-shot"): "the same, seed 1",
    ("demo, seed 2", "gain over calibrated zero-shot"): "the same, seed 2",
    ("demo, seed 0", "peak memory over scoring"): "peak memory of the main job over scoring the model, seed 0",
}
for _seed in (0, 1, 2):
    SHOWN[(f"SFTTrainer with LoRA, SmolLM2, 500 conversations, seed {_seed}", "fall of the held-out loss")] = (
        f"the same, seed {_seed}"
        if _seed
        else "SFTTrainer with LoRA, SmolLM2, conversations of SQuAD: fall of the held-out loss, seed 0"
    )
for _seed in (0, 1, 2):
    SHOWN[(f"SQuAD, LoRA on SmolLM2, seed {_seed}", "F1 over zero-shot")] = (
        f"the same, seed {_seed}"
        if _seed
        else "SQuAD rows, written answers, LoRA on SmolLM2: F1 over zero-shot, seed 0"
    )
for _kind, _words in (
    (
        "float32 rademacher",
        "16 groups of 32 tokens with directions of their own, 2,048 x 2,048, over `F.linear`: float32 Rademacher",
    ),
    ("float32 gaussian", "the same, float32 Gaussian"),
    ("bfloat16 rademacher", "the same, bfloat16 Rademacher, moves in float32"),
):
    SHOWN[(f"16 x 32 tokens 2048 x 2048 {_kind}", "own directions over F.linear")] = _words
SHOWN[("16 x 32 tokens 2048 x 2048 bfloat16 rademacher", "own directions, moves rounded, over F.linear")] = (
    "the same, moves rounded"
)
for _kind, _words in (
    ("rademacher", "`update_` along 64 Rademacher directions over one direction, 128 Mi float32 weights"),
    ("gaussian", "the same, Gaussian"),
):
    SHOWN[(f"update_ 64 directions 128 Mi float32 {_kind}", "over one direction")] = _words
for _kind, _words in (
    (
        "100 M rademacher float32",
        "`update_` of 30 seeds in one pass, 100 M float32 weights, Rademacher: times faster than one by one",
    ),
    ("100 M rademacher bfloat16", "the same, bfloat16"),
    ("25 M gaussian float32", "the same, float32 Gaussian, 25 M weights"),
):
    SHOWN[(f"update_ 30 seeds, {_kind}", "times faster than one by one")] = _words
SHOWN[("fill_ gaussian", "times faster than sample")] = "`fill_` of 16 Mi Gaussian numbers against `Noise.sample`"
SHOWN[("MeZO port, 100 M weights, 4 rows", "times faster than eager")] = (
    "MeZO's loop with blockzo's operations, 24 layers of 2,048 x 2,048, 4 rows, against the loop in eager torch"
)
SHOWN[("mezo, 16 x 64 tokens", "Trainer step over plain step")] = (
    "MeZO step through Hugging Face's Trainer over the plain loop's, SmolLM2-135M, 16 x 64 tokens"
)
for _name in ("OPT-125M", "Llama 134M"):
    for _shape in ("16 x 64", "4 x 16"):
        SHOWN[(f"{_name} float32 {_shape} rademacher", "evaluation over two plain forwards")] = (
            f"evaluation of a MeZO step, {_name} shape, {_shape} tokens, float32, over two plain forwards"
        )
    for _shape in ("16 x 64", "4 x 16"):
        SHOWN[(f"{_name} bfloat16 {_shape}, no 16-bit products", "evaluation faster than plain forwards")] = (
            f"the same, bfloat16, {_shape}, AVX2 alone: times faster than torch's bfloat16 forwards"
        )
    SHOWN[(f"{_name} 4 directions, both signs, 1 x 16 rademacher", "max_group 8: faster than 1")] = (
        f"four directions, both signs, 1 x 16 tokens, {_name} shape: one batch against one by one"
    )
SHOWN[("stories15M bfloat16, 10000 losses", "perturbed: weights that changed")] = (
    "stories15M in bfloat16: weights that changed after 10,000 losses"
)
SHOWN[("stories15M bfloat16, 10000 losses", "in place: weights that changed")] = "the same, evaluated in place"
for _method in ("MeZO", "SPZO 1 x 4"):
    SHOWN[(f"OPT-125M 8 x 128 {_method}", "peak of live tensors less kept, over inference")] = (
        f"peak of live tensors over inference, less what is kept, OPT-125M shape, 8 x 128 tokens, {_method}"
    )
SHOWN[("OPT-125M 8 x 128 MeZO", "peak RSS less kept, over inference")] = (
    "peak resident memory of the process, the same, MeZO"
)
SHOWN[("OPT-125M 8 x 128 SPZO 1 x 4", "peak RSS less kept, over inference")] = "the same, SPZO 1 x 4, less what is kept"
for _method in ("MeZO", "SPZO 1 x 4"):
    SHOWN[(f"OPT-125M 8 x 128 {_method}", "peak RSS less kept, over inference, MALLOC_MMAP_THRESHOLD_ 256 KiB")] = (
        f"the same, {_method}, where `MALLOC_MMAP_THRESHOLD_` is 256 KiB"
    )
SHOWN[("OPT-125M 8 x 128 SPZO 1 x 4", "kept over stated in advance")] = "what is kept, over what was stated in advance"
SHOWN[("MiniLM SST-2 FedSPZO", "points below centralised")] = (
    "FedSPZO, 8 clients, 2 sampled, Dirichlet 0.5, MiniLM on SST-2: points of accuracy below the centralised run"
)
SHOWN[("MiniLM SST-2 FedSPZO with logit adjustment", "points below centralised")] = "the same, with logit adjustment"
SHOWN[("smollm2-135m SST-2 FedSPZO", "times fewer FLOPs than DeComFL-like")] = (
    "FLOPs of a DeComFL-like baseline's run over those of FedSPZO to its final accuracy, smollm2-135m on SST-2"
)
SHOWN[("smollm2-135m SST-2 FedSPZO", "times fewer FLOPs than DeComFL-like, first arrivals of both")] = (
    "the same, where the baseline's run counts to its own first arrival there"
)
SHOWN[("MiniLM SST-2 trimmed mean", "points lost to liars")] = (
    "a quarter of the clients sends random scalars, trimmed mean: points of accuracy lost"
)
SHOWN[("catch-up of 1000 rounds of 10 directions, 125M float32", "times faster than eager one by one")] = (
    "catching up 1,000 rounds of 10 directions, OPT-125M shape, float32, against one by one in eager torch"
)


AMD, INTEL = "AMD EPYC, 2 cores", "Intel(R) Xeon(R) Processor, 2 cores"
ZEN_4 = "AMD EPYC (family 25, model 17), 2 cores"
_ROUNDS = "MiniLM SST-2 FedSPZO, 240 rounds, seed 0"
_FEDAVG = "MiniLM SST-2 fedavg, new head, seed 0"
_TWO = ("OPT-125M float32 16 x 64 rademacher", "evaluation over two plain forwards")
HEADLINES = (
    (
        "**Backpropagation, where it fits, learns more for less**: federated MiniLM on SST-2, accuracy after rounds",
        "SPZO {0:.3f} in {1:.1f} TFLOP; FedAvg {2:.3f} in {3:.1f}",
        ((_ROUNDS, "accuracy", AMD), (_ROUNDS, "TFLOP", AMD), (_FEDAVG, "accuracy", AMD), (_FEDAVG, "TFLOP", AMD)),
    ),
    (
        "What a client sends in such a round, at any size of model for the first",
        "SPZO {0:.0f} bytes; FedAvg {1:,.0f}",
        ((_ROUNDS, "bytes up an answer", AMD), (_FEDAVG, "bytes up an answer", AMD)),
    ),
    (
        "**Slower than two plain forwards on most CPUs**: the two losses of a MeZO step, OPT-125M shape, 16 x 64 tokens",
        "{0:.2f} of their time on an Intel Xeon, {1:.2f} on an AMD EPYC of Zen 4, {2:.2f} on one of Zen 5",
        ((*_TWO, INTEL), (*_TWO, ZEN_4), (*_TWO, AMD)),
    ),
    (
        "Peak memory of a MeZO step over inference, OPT-125M shape",
        "{0:.2f} times",
        (("MeZO step perturbed", "peak RSS over inference", AMD),),
    ),
    (
        "Catching up 1,000 missed rounds of 10 directions, 125M weights, against eager torch",
        "{0:.0f} times faster",
        (("catch-up of 1000 rounds of 10 directions, 125M float32", "times faster than eager one by one", AMD),),
    ),
)
"""Of the README: what, how it is said, and the rows (case, metric, machine) that fill it in."""


def measured() -> list[dict[str, str]]:
    """Rows of full size; those of the claims suite are what its quick runs are compared with."""
    return [row for row in read(RESULTS) if row["benchmark"] != "claims"]


def markdown() -> str:
    # of several machines the one that was measured last
    rows = {(row["case"], row["metric"]): row for row in sorted(measured(), key=lambda row: row["date"])}
    rows = {key: rows[key] for key in SHOWN if key in rows}
    machines = sorted({row["machine"] for row in rows.values()})
    letters = {machine: chr(ord("A") + place) for place, machine in enumerate(machines)}
    lines = ["| figure | measured (p20 to p80) | goal | | on |", "|---|---|---|---|---|"]
    for key, text in SHOWN.items():
        row = rows.get(key)
        if row is None:
            lines.append(f"| {text} | not measured yet | | | |")
            continue
        value, goal = float(row["p50"]), row["target"]
        spread = "" if row["rounds"] == "1" else f" ({float(row['p20']):.3g} to {float(row['p80']):.3g})"
        sign, _, bound = goal.partition(" ")
        met = not goal or (value >= float(bound) if sign == ">=" else value <= float(bound))
        verdict = "" if not goal else "met" if met else "**missed**"
        # a share is told in percent
        shown, unit = (100 * value, "%") if row["unit"] == "of 1" else (value, row["unit"])
        told = f"{shown:.3g} {unit}".strip()
        lines.append(f"| {text} | {told}{spread} | {goal} | {verdict} | {letters[row['machine']]} |")
    dates = sorted({row["date"] for row in rows.values()})
    named = "; ".join(f"{letter}: {machine}" for machine, letter in letters.items())
    lines += [
        "",
        f"Machines: {named}. Dates: {', '.join(dates)}. Versions and commands: `benchmarks/results.csv`.",
    ]
    return "\n".join(lines)


def headlines() -> str:
    """The README's six: those of `HEADLINES`, and what the planner saves."""
    rows = {(row["case"], row["metric"], row["machine"]): row for row in measured()}
    lines = ["| figure | measured | command |", "|---|---|---|"]
    for text, told, keys in HEADLINES:
        found = [rows[key] for key in keys]
        commands = ", ".join(f"`{command}`" for command in dict.fromkeys(row["command"] for row in found))
        lines.append(f"| {text} | {told.format(*(float(row['p50']) for row in found))} | {commands} |")
    saved = report.planner_against_spsa(store.read())
    what = "Times fewer forward FLOPs of `auto` to the accuracy that n-SPSA ends with (below 1: `auto` needs more)"
    told = f"{saved.median:.1f} in the median, {saved.low:.2g} to {saved.high:.2g}, {saved.count} runs"
    lines.append(f"| {what} | {told} | `python benchmarks/estimators.py` |")
    return "\n".join(lines)


def placed(text: str, made: str) -> str:
    """A file's text with what stands between its marks exchanged."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def drawn() -> dict[Path, str]:
    """What stands between the marks of each file."""
    return {
        PAGE: markdown(),
        README: headlines(),
        PAPER: shapes.page(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        print(markdown())
        return
    for file, made in drawn().items():
        file.write_text(placed(file.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
