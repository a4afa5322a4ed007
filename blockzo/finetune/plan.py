"""`--dry-run`: what a run would cost, before it costs it."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blockzo import Auto, cost
from blockzo.finetune.block_facts import block_facts
from blockzo.finetune.loop import Training
from blockzo.finetune.models.devices import settled, synchronize
from blockzo.finetune.models.loading import weight_bytes
from blockzo.finetune.prepare import prepare
from blockzo.finetune.progress import Reporter
from blockzo.finetune.settings import UNMEASURED, Settings

TIMED_STEPS = 2


def dry_run(settings: Settings, reporter: Reporter | None = None, fallback: str | None = None) -> dict[str, Any]:
    """Blocks, FLOPs, memory and time of a run. Takes a few real steps on the model in memory; writes nothing.

    Raises: as `finetune`.
    """
    reporter = reporter or Reporter()
    # a rate costs losses to find, and changes nothing of what is told here
    settings = replace(settled(settings), lr=settings.lr or UNMEASURED)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    prepared = prepare(settings, reporter.say, fallback)
    run = Training(settings, Path(), prepared, reporter)
    # a batch of median length, so that its cost speaks for the run
    batches = sorted((run.order.rows(step) for step in range(run.order.per_epoch)), key=run.order.width)
    typical = batches[len(batches) // 2]
    batch = prepared.scorer.batch(prepared.train, typical)
    planned = isinstance(run.zo.method, Auto)
    # a planner visits every block twice before it chooses
    steps = 2 * len(run.blocks) if planned else TIMED_STEPS
    reporter.say(f"timing {steps} steps")
    seconds, results = [], []
    for _ in range(steps + 1):
        began = time.perf_counter()
        results.append(run.zo.step(batch))
        synchronize(prepared.loaded.device)
        seconds.append(time.perf_counter() - began)
    prices = [
        cost(run.blocks, run.zo.method_of(result.record), batch=batch, loss_fn=run.loss_fn)
        for result in (results if planned else results[-1:])
    ]
    price = max(prices, key=lambda found: found.flops)
    step_seconds = statistics.mean(seconds[1:]) if planned else min(seconds[1:])
    weights = weight_bytes(prepared.model)
    facts = block_facts(run.blocks)
    for number, (fact, flops) in enumerate(zip(facts, price.block_flops, strict=True)):
        runs = statistics.mean(found.forwards_per_block[number] for found in prices)
        fact.update(flops=flops, runs_per_step=round(runs, 1) if planned else runs)
    return {
        "schema": 1,
        "command": "finetune --dry-run",
        "model": settings.model,
        "kind": prepared.loaded.kind,
        "task": settings.task,
        "method": str(settings.estimator()),
        "parameters": run.parameters(),
        "blocks": facts,
        "batch": {"rows": len(typical), "tokens": int(batch["ids"].shape[1])},
        "flops_per_step": statistics.mean(found.flops for found in prices),
        "forwards_per_step": statistics.mean(len(result.losses) for result in results),
        "weight_bytes": weights,
        "activation_bytes": price.activation_bytes,
        "resident_bytes": resident_bytes(),
        "seconds_per_step": step_seconds,
        "seconds_of_training": step_seconds * settings.steps,
        "steps": settings.steps,
        "threads": torch.get_num_threads(),
        "device": str(prepared.loaded.device),
        "rows": {"training": len(prepared.train.ids), "held_out": len(prepared.held_out.ids)},
        "warnings": run.warnings,
    }


def resident_bytes() -> int | None:
    """Largest memory this process has had so far, or None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe(plan: dict[str, Any]) -> str:
    """The plan for a person."""
    lines = [
        f"{plan['model']} ({plan['kind']}), task {plan['task']}, {plan['method']}, {plan['parameters'] / 1e6:.1f} M weights",
        "",
        "block  layers    weights     forward FLOPs  runs a step",
    ]
    for number, block in enumerate(plan["blocks"]):
        last = block["first_layer"] + block["layers"] - 1
        layers = f"{block['first_layer']}-{last}" if block["layers"] else "head"
        weights, flops = block["parameters"] / 1e6, block["flops"]
        lines.append(f"{number:>5}  {layers:<8}  {weights:>7.2f} M  {flops:>13.3g}  {block['runs_per_step']:>11}")
    minutes = plan["seconds_of_training"] / 60
    peak = f", this process {plan['resident_bytes'] / 1e6:.0f} MB at most" if plan["resident_bytes"] else ""
    lines += [
        "",
        f"batch         {plan['batch']['rows']} rows x {plan['batch']['tokens']} tokens (of median length)",
        f"a step        {plan['flops_per_step']:.3g} forward FLOPs, {plan['forwards_per_step']} losses, "
        f"{plan['seconds_per_step']:.2f} s measured on {plan['threads']} threads",
        f"training      {plan['steps']} steps, about {minutes:.1f} min without evaluations",
        f"memory        weights {plan['weight_bytes'] / 1e6:.0f} MB, kept activations "
        f"{plan['activation_bytes'] / 1e6:.2f} MB{peak}",
        f"rows          {plan['rows']['training']} for training, {plan['rows']['held_out']} held out",
    ]
    return "\n".join(lines)
