"""The perturbed forward against the plain one: time, memory, and the bits of the weights.

    python benchmarks/perturbed.py [--only step bfloat16 groups bits memory] [--rounds 15] [--no-save]

step      evaluation of a MeZO step (both losses) and the whole step, against two plain forwards alone; float32, OPT-125M and a
          Llama of 134M (SmolLM2-135M's shape), random weights, loss of two label words at the last position.
bfloat16  evaluation with bfloat16 weights, against torch's own bfloat16 forwards. To pretend to be a CPU that cannot multiply
          16-bit numbers: ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 BLOCKZO_ISA=avx2 python benchmarks/perturbed.py ...
groups    four directions, both signs, one sequence of 16 tokens: as one batch against one after the other.
bits      stories15M in bfloat16: its weights after 10,000 losses, and after as many evaluated in place.
memory    peak of evaluation over plain inference, each in a process of its own: of live tensors (weights and scratch included),
          of RSS, and of RSS where glibc does not raise the size from which it maps a block; kept activations over those stated.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("BLOCKZO_REQUIRE_NATIVE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

import blockzo as bz
from benchmarks.harness import Spread, Table, paired
from benchmarks.step import batch, last_token_loss, opt_125m
from blockzo.optim.executor import PerturbedExecutor

LR, EPS = 1e-7, 1e-3
EVALUATIONS = 10_000


def llama_134m() -> nn.Module:
    """The shape of SmolLM2-135M."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {"OPT-125M": opt_125m, "Llama 134M": llama_134m}
SHAPES = {(16, 64): 1.05, (4, 16): 1.2}


def small_batch(rows: int, tokens: int) -> dict[str, Tensor]:
    """Tokens that both vocabularies have."""
    data = batch(rows, tokens)
    return {name: ids % 49_000 for name, ids in data.items()}


def plain_losses(model: nn.Module, data: dict[str, Tensor], count: int) -> None:
    with torch.no_grad():
        for _ in range(count):
            float(last_token_loss(model, data))


def evaluation(
    model: nn.Module, data: dict[str, Tensor], method: object, distribution: str, max_group: int | str = "auto"
) -> Callable[[], object]:
    blocks = bz.Blocks(model, [])
    tree = method.tree(1)  # type: ignore[attr-defined]
    executor = PerturbedExecutor(blocks, bz.Noise(1, distribution), [EPS], max_group)
    return lambda: executor.run(tree, lambda: last_token_loss(model, data))


def step(table: Table, rounds: int) -> None:
    for name, make in MODELS.items():
        model = make()
        for shape in SHAPES:
            for distribution in ("rademacher", "gaussian"):
                over_two_forwards(table, name, model, shape, distribution, rounds)


def over_two_forwards(
    table: Table,
    name: str,
    model: nn.Module,
    shape: tuple[int, int],
    distribution: str,
    rounds: int,
    warmup: int = 2,
    whole: bool = True,
) -> None:
    """`whole`: the whole step too, with its checks and its update."""
    data = small_batch(*shape)
    evaluate = evaluation(model, data, bz.MeZO(), distribution)
    sides = {"forwards": lambda: plain_losses(model, data, 2), "evaluation": evaluate}
    if whole:
        zo = bz.ZO(model, last_token_loss, lr=LR, eps=EPS, distribution=distribution)
        sides["step"] = lambda: zo.step(data)
    times = paired(sides, rounds=rounds, warmup=warmup)
    case = f"{name} float32 {shape[0]} x {shape[1]} {distribution}"
    goal = SHAPES[shape] if distribution == "rademacher" else None
    for side, at_most in (("evaluation", goal), ("step", None)):
        if side in times:
            ratios = [a / b for a, b in zip(times[side], times["forwards"], strict=True)]
            table.add(case, f"{side} over two plain forwards", Spread.of(ratios), "x", at_most=at_most)
            table.add(case, f"{side}: seconds", Spread.of(times[side]), "s")
    table.add(case, "two plain forwards: seconds", Spread.of(times["forwards"]), "s")


def sixteen_bit_products() -> str:
    """What oneDNN may multiply 16-bit numbers with here."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if limit in ("", "ALL", "DEFAULT", "AVX512_CORE_AMX") and "amx_bf16" in flags:
        return "AMX"
    if not limit.startswith("AVX2") and "avx512_bf16" in flags:
        return "AVX-512 bf16"
    return "no 16-bit products"


def bfloat16(table: Table, rounds: int) -> None:
    products = sixteen_bit_products()
    for name, make in MODELS.items():
        model = make().to(torch.bfloat16)
        for rows, tokens in SHAPES:
            data = small_batch(rows, tokens)
            times = paired(
                {
                    "forwards": lambda data=data, model=model: plain_losses(model, data, 2),
                    "evaluation": evaluation(model, data, bz.MeZO(), "rademacher"),
                },
                rounds=rounds,
                warmup=1,
            )
            ratios = [a / b for a, b in zip(times["forwards"], times["evaluation"], strict=True)]
            target = 3.0 if products == "no 16-bit products" else None
            case = f"{name} bfloat16 {rows} x {tokens}, {products}"
            table.add(case, "evaluation faster than plain forwards", Spread.of(ratios), "x", target=target)


def groups(table: Table, rounds: int) -> None:
    for name, make in MODELS.items():
        model, data = make(), small_batch(1, 16)
        for distribution in ("rademacher", "gaussian"):
            sides = {
                str(size): evaluation(model, data, bz.SPSA(4), distribution, size) for size in (1, 2, 4, 8, "auto")
            }
            times = paired(sides, rounds=rounds)
            for size in list(sides)[1:]:
                ratios = [a / b for a, b in zip(times["1"], times[size], strict=True)]
                target = 1.8 if size == "8" and distribution == "rademacher" else None
                case = f"{name} 4 directions, both signs, 1 x 16 {distribution}"
                table.add(case, f"max_group {size}: faster than 1", Spread.of(ratios), "x", target=target)


def stories(dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM

    from blockzo.finetune.models.built_in import STORIES
    from blockzo.finetune.models.packages import fetch

    return AutoModelForCausalLM.from_pretrained(fetch(STORIES), dtype=dtype).eval()


def bits(table: Table, rounds: int) -> None:
    model = stories(torch.bfloat16)
    blocks = bz.Blocks(model, [])
    before = bz.digest(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = {name: ids % 32_000 for name, ids in batch(1, 16).items()}
    tree = bz.MeZO().tree(1)
    for number in range(EVALUATIONS // 2):
        executor = PerturbedExecutor(blocks, bz.Noise(number), [EPS])
        executor.run(tree, lambda: last_token_loss(model, data))
    changed = sum(int((p != start[name]).sum()) for name, p in model.named_parameters())
    total = sum(p.numel() for p in model.parameters())
    if (bz.digest(model) == before) != (changed == 0):
        raise AssertionError(f"{changed} weights differ, but the digests say otherwise")
    case = f"stories15M bfloat16, {EVALUATIONS} losses"
    table.add(case, "perturbed: weights that changed", Spread.of([changed / total]), "of 1", at_most=0.0)
    for number in range(EVALUATIONS // 2):
        # what in-place evaluation does to weights: + eps, - 2 eps, + eps; the losses between change nothing
        noise = bz.Noise(number)
        for scale in (EPS, -2 * EPS, EPS):
            bz.perturb_(model, noise, scale)
    changed = sum(int((p != start[name]).sum()) for name, p in model.named_parameters())
    drift = sum(
        float((p.detach().double() - start[name].double()).square().sum()) for name, p in model.named_parameters()
    )
    norm = sum(float(p.double().square().sum()) for p in start.values())
    table.add(case, "in place: weights that changed", Spread.of([changed / total]), "of 1")
    table.add(case, "in place: drift over norm", Spread.of([(drift / norm) ** 0.5]), "of 1")


PEAKS = ("inference", "MeZO", "SPZO 1 x 4", "SPZO 1 x 4 in groups")
MEMORY_BATCH = (8, 128)


def split_tree(kind: str, model: nn.Module) -> tuple[bz.Blocks, object, int]:
    method = bz.MeZO() if kind == "MeZO" else bz.SPZO(1, 4)
    return bz.Blocks(model, [] if kind == "MeZO" else 0.5), method, 4 if kind.endswith("groups") else 1


def run_for_peak(kind: str, live: bool) -> None:
    model, data = opt_125m(), batch(*MEMORY_BATCH)
    # what building the model took at its worst must not hide what running it takes
    Path("/proc/self/clear_refs").write_text("5")

    def work() -> None:
        plain_losses(model, data, 2)
        if kind != "inference":
            blocks, method, size = split_tree(kind, model)
            for number in range(2):
                executor = PerturbedExecutor(blocks, bz.Noise(number), [EPS] * len(blocks), size)
                executor.run(method.tree(len(blocks)), lambda: last_token_loss(model, data))  # type: ignore[attr-defined]

    if live:
        print(sum(p.numel() * p.element_size() for p in model.parameters()) + most_live(work))
        return
    work()
    status = Path("/proc/self/status").read_text()
    print(int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) << 10)


def most_live(work: Callable[[], None]) -> int:
    """Most bytes of tensors alive at once of those that `work` makes."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    held = most = 0
    for event in found.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def memory(table: Table, rounds: int) -> None:
    model, data = opt_125m(), batch(*MEMORY_BATCH)
    blocks_of = {kind: split_tree(kind, model) for kind in PEAKS[1:]}
    stated = {
        kind: bz.cost(blocks, method, batch=data, loss_fn=last_token_loss, max_group=size).activation_bytes  # type: ignore[arg-type]
        for kind, (blocks, method, size) in blocks_of.items()
    }
    mapped = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 18)}
    for what, option, environment, times, bound in (
        ("peak of live tensors less kept, over inference", "--live", None, 1, 1.02),
        ("peak RSS less kept, over inference", "--rss", None, 3, 1.02),
        ("peak RSS less kept, over inference, MALLOC_MMAP_THRESHOLD_ 256 KiB", "--rss", mapped, 3, 1.02),
    ):
        found = {kind: [peak(kind, option, environment) for _ in range(times)] for kind in PEAKS}
        for kind in PEAKS[1:]:
            ratios = [(a - stated[kind]) / b for a, b in zip(found[kind], found["inference"], strict=True)]
            at_most = None if kind.endswith("groups") else bound
            table.add(memory_case(kind), what, Spread.of(ratios), "x", at_most=at_most)
    for kind, (blocks, method, size) in blocks_of.items():
        if stated[kind]:
            executor = PerturbedExecutor(blocks, bz.Noise(0), [EPS] * len(blocks), size)
            kept = executor.run(method.tree(len(blocks)), lambda: last_token_loss(model, data)).kept_bytes  # type: ignore[attr-defined]
            table.add(memory_case(kind), "kept activations", Spread.of([kept / 2**20]), "MiB")
            table.add(
                memory_case(kind), "kept over stated in advance", Spread.of([kept / stated[kind]]), "x", at_most=1.05
            )


def memory_case(kind: str) -> str:
    return f"OPT-125M {MEMORY_BATCH[0]} x {MEMORY_BATCH[1]} {kind}"


def peak(kind: str, option: str, environment: dict[str, str] | None) -> int:
    """Bytes, of a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--peak", kind, option]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout.splitlines()[-1])


SECTIONS = {"step": step, "bfloat16": bfloat16, "groups": groups, "bits": bits, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--peak", choices=PEAKS, help=argparse.SUPPRESS)
    parser.add_argument("--live", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rss", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        return run_for_peak(given.peak, given.live)
    table = Table("perturbed")
    for name in given.only:
        SECTIONS[name](table, given.rounds)
    if not given.no_save:
        table.save()


if __name__ == "__main__":
    main()
