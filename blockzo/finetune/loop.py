"""The steps of one run: what is trained, measured and written as it goes, from wherever the journal ends.

The state of a run is its base weights and the journal's records. Batches, schedules and the rows of evaluations are functions
of the settings and the step, so a continued run does what an uninterrupted one would have done, to the bit.
"""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch

import blockzo
from blockzo import ZO, Journal, JournalError, MeZO, Record, cost, digest
from blockzo.finetune import diagnostics, memory, output
from blockzo.finetune.errors import UserError
from blockzo.finetune.facts import RunFacts
from blockzo.finetune.first_rate import with_rate
from blockzo.finetune.interrupt import Interrupts
from blockzo.finetune.metrics import HeldOutScores, measure
from blockzo.finetune.models.devices import settled
from blockzo.finetune.models.identity import identity_of
from blockzo.finetune.models.loading import weight_bytes
from blockzo.finetune.models.transformers_library import TORCH_DTYPES
from blockzo.finetune.number_lists import numbers
from blockzo.finetune.objective import Objective
from blockzo.finetune.prepare import Prepared
from blockzo.finetune.progress import Reporter
from blockzo.finetune.scoring import Batch
from blockzo.finetune.settings import Settings
from blockzo.ops.params import named_tensors
from blockzo.optim.schedules import rates

EVALUATION_BATCH = 32


class Write(Protocol):
    """What becomes of a run that has ended: model, curve, summary."""

    def __call__(self, training: Training, journal: Journal, metrics: output.Metrics) -> dict[str, Any]: ...


class Training:
    """What new and continued runs share: the optimiser, the journal and the figures of every step."""

    def __init__(self, settings: Settings, folder: Path, prepared: Prepared, reporter: Reporter) -> None:
        self.folder = folder
        self.prepared = prepared
        self.reporter = reporter
        self.dtype = TORCH_DTYPES[settled(settings).dtype]
        self.blocks = prepared.blocks(settings)
        self.order = prepared.order(settings)
        self.rows = prepared.evaluation_rows(settings)
        self.base_digest = digest(prepared.model)
        self.loss_fn = Objective(settings, prepared.scorer, prepared.train)
        self.zo = ZO(
            prepared.model,
            self.loss_fn,
            method=settings.estimator(),
            blocks=self.blocks,
            lr=0.0,
            eps=numbers("--eps", settings.eps) if "," in settings.eps else float(settings.eps),
            distribution=settings.distribution,
            rank=settings.rank,
            seed=settings.seed,
            weight_decay=settings.weight_decay,
            stochastic_rounding=settings.stochastic_rounding,
            evaluate="in_place" if settings.in_place else "perturbed",
            moved=settings.moved,
            per_example=settings.per_example,
            rows_of=self.loss_fn.terms,
            max_group=1 if self.loss_fn.writes else "auto",
        )
        if self.loss_fn.writes:
            self.zo.reuse.reason = "what a model writes depends on all of its layers, token by token"
        self.settings = with_rate(settings, self.zo, self.loss_fn, map(self._batch, count()), reporter.say)
        self.zo.lr = rates(settings.schedule, self._each("lr"), settings.steps, settings.warmup)
        self.sample = diagnostics.WeightSample(named_tensors(prepared.model), settings.seed)
        self.advised: set[str] = set()
        self.warnings = list(prepared.notes)
        self.before: HeldOutScores | None = None
        self.after: HeldOutScores | None = None
        self.peaks: dict[str, int | None] = {"inference": None, "training": None}
        self._flops: dict[tuple[int, ...], list[int]] = {}
        self._began = time.monotonic()
        self._earlier = 0.0

    def _batch(self, step: int) -> Batch:
        return self.prepared.scorer.batch(self.prepared.train, self.order.rows(step))

    def _each(self, name: str) -> list[float]:
        values = numbers(f"--{name}", getattr(self.settings, name))
        return values * len(self.blocks) if len(values) == 1 else values

    def parameters(self) -> int:
        """Weights that are trained."""
        return sum(tensor.numel() for tensor in named_tensors(self.prepared.model).values())

    def trained_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in named_tensors(self.prepared.model).values())

    def bytes_needed(self) -> int:
        return weight_bytes(self.prepared.model) + (32 << 20)

    def header(self) -> dict[str, Any]:
        """The journal's metadata."""
        import transformers

        return {
            "settings": self.settings.as_dict(),
            "data": self.prepared.data_facts(),
            "source": self.prepared.loaded.source,
            "classes": len(self.prepared.task.words) if self.prepared.task else 0,
            "threads": torch.get_num_threads(),
            "device": str(self.prepared.loaded.device),
            "identity": identity_of(self.prepared.loaded).as_dict(),
            "versions": {
                "blockzo": blockzo.__version__,
                "torch": str(torch.__version__),
                "transformers": transformers.__version__,
            },
        }

    def check(self, journal: Journal, facts: RunFacts) -> None:
        """Raises UserError where model, tokenizer or data are not those of the journal."""
        if journal.base_digest != self.base_digest:
            raise UserError(
                f"the model {self.prepared.loaded.source} is not the one that the run began with: its digest is "
                f"{self.base_digest}, the journal's {journal.base_digest}; give the base model with --model"
            )
        if journal.layout != self.blocks.layout:
            raise UserError(
                "this version cuts the model into other blocks than the journal says; use the version that wrote it"
            )
        unchecked = facts.check_model(self.prepared.loaded)
        if unchecked is not None:
            self.warn(unchecked)
        facts.check_data(self.prepared.data_facts())
        device = str(self.prepared.loaded.device)
        if facts.device not in (None, device):
            self.warn(
                f"the run was on {facts.device}, now it is on {device}: later losses may differ in their last bits"
            )
        versions = self.header()["versions"]
        for name, old in facts.versions.items():
            if name != "blockzo" and versions.get(name) not in (None, old):
                self.warn(f"{name} was {old}, now it is {versions[name]}: later losses may differ in their last bits")

    def go(self, journal: Journal, write: Write) -> dict[str, Any]:
        """Trains what is left; then `write` has the result, and nothing interrupts it but a second signal."""
        metrics = None
        with Interrupts() as interrupts:
            try:
                metrics = output.Metrics(self.folder / output.METRICS, len(journal))
                for note in self.prepared.notes:
                    self.reporter.warn(note)
                self._advise("eps", diagnostics.eps_advice(self.sample.take(), self.zo.eps, self.dtype))
                self._begin(metrics, interrupts)
                self._catch_up(journal, metrics, interrupts)
                if not journal.finished:
                    with memory.peak(self.prepared.loaded.device) as training:
                        self._train(journal, metrics, interrupts)
                    self.peaks["training"] = training.nbytes
                    journal.finish(digest(self.prepared.model))
                if self.after is None:
                    self.after = self._final(interrupts)
            finally:
                journal.close()
                if metrics is not None:
                    metrics.close()
                self.reporter.stop()
            with interrupts.at_once():
                return write(self, journal, metrics)

    def _begin(self, metrics: output.Metrics, interrupts: Interrupts) -> None:
        """The scores before training, from line 0 of the metrics where a continued run has it."""
        if metrics.steps >= 0:
            self.before = HeldOutScores.from_dict(metrics.lines[0]["before"])
            self._earlier = metrics.lines[-1]["seconds"]
            return
        self.reporter.say("scoring the held-out rows before training")
        every = list(range(len(self.prepared.held_out.ids)))
        with memory.peak(self.prepared.loaded.device) as scoring:
            values = self._measure(every, interrupts)
        self.peaks["inference"] = scoring.nbytes
        self.before = self._scores(values, every)
        line: dict[str, Any] = {
            "step": 0,
            "loss": None,
            "flops": 0,
            **self._evaluation(values[torch.tensor(self.rows)]),
        }
        metrics.append({**line, "before": self.before.as_dict(), "seconds": self._seconds()})

    def _catch_up(self, journal: Journal, metrics: output.Metrics, interrupts: Interrupts) -> None:
        """Brings the weights to the journal's last record, and writes lines of metrics that a kill prevented."""
        records = journal.records()
        self.zo.take_plan(journal)
        written = min(metrics.steps, len(records))
        self.zo.replay(records[:written])
        if len(records) > written:
            self.reporter.say(f"rebuilding metrics of {len(records) - written} steps from the journal")
        for record in records[written:]:
            interrupts.check()
            self._advance(metrics, interrupts, record)

    def _train(self, journal: Journal, metrics: output.Metrics, interrupts: Interrupts) -> None:
        self.zo.journal = journal
        self.reporter.start(self.zo.step_number, self.settings.steps)
        while self.zo.step_number < self.settings.steps:
            interrupts.check()
            self._advance(metrics, interrupts)

    def _advance(self, metrics: output.Metrics, interrupts: Interrupts, record: Record | None = None) -> None:
        """One step, taken now or (with `record`) taken before the run was killed, and its line of metrics."""
        number = self.zo.step_number + 1
        scored = number % self.settings.interval == 0 or number == self.settings.steps
        batch = self._batch(number - 1)
        before = self.sample.take() if scored or number == 1 else None
        if record is None:
            record, flops = self._step(batch, number)
        else:
            flops = self._counted(batch, record)
            self.zo.apply(record)
        line = {"step": number, **diagnostics.figures(record, self.dtype)}
        line["flops"] = metrics.lines[-1]["flops"] + flops
        self._advise("snr", diagnostics.snr_advice(line["snr"], self.dtype))
        if before is not None:
            line["unmoved"] = diagnostics.unmoved(before, self.sample.take())
            if any(line["lr"]):
                advice = diagnostics.update_advice(line["unmoved"], self.dtype, self.settings.stochastic_rounding)
                self._advise("update", advice)
        if number == self.settings.steps:
            every = list(range(len(self.prepared.held_out.ids)))
            values = self._measure(every, interrupts)
            self.after = self._scores(values, every)
            line.update(self._evaluation(values[torch.tensor(self.rows)]))
        elif scored:
            line.update(self._evaluation(self._measure(self.rows, interrupts)))
        metrics.append({**line, "seconds": self._seconds()})
        self.reporter.step(metrics.lines[-1])

    def _step(self, batch: Batch, number: int) -> tuple[Record, float]:
        try:
            result = self.zo.step(batch)
        except JournalError:
            raise
        except ValueError as error:
            raise UserError(
                f"step {number}: {error}. The journal holds the {number - 1} steps before it and is valid. Start again with a "
                "lower --lr or another --eps; where --dtype is float16, float32 and bfloat16 do not overflow as early"
            ) from error
        return result.record, result.flops

    def _counted(self, batch: Batch, record: Record) -> float:
        """FLOPs of a step that is in the journal."""
        shape = tuple(batch["ids"].shape)
        if shape not in self._flops:
            self._flops[shape] = cost(self.blocks, MeZO(), batch=batch, loss_fn=self.loss_fn).block_flops
        return self.zo.method_of(record).tree(len(self.blocks)).flops(self._flops[shape])

    def _measure(self, rows: list[int], interrupts: Interrupts) -> torch.Tensor:
        def progress(done: int, total: int) -> None:
            interrupts.check()
            self.reporter.evaluating(done, total)

        prepared = self.prepared
        return measure(prepared.model, prepared.scorer, prepared.held_out, rows, EVALUATION_BATCH, progress)

    def _final(self, interrupts: Interrupts) -> HeldOutScores:
        every = list(range(len(self.prepared.held_out.ids)))
        return self._scores(self._measure(every, interrupts), every)

    def _scores(self, values: torch.Tensor, rows: list[int]) -> HeldOutScores:
        return self.prepared.scores(values, rows)

    def _evaluation(self, values: torch.Tensor) -> dict[str, Any]:
        found = self._scores(values, self.rows).as_dict()
        return {"eval_rows": found.pop("rows"), "eval_loss": found.pop("loss"), **found}

    def _seconds(self) -> float:
        return round(self._earlier + time.monotonic() - self._began, 3)

    def _advise(self, kind: str, text: str | None) -> None:
        """Says something once a run."""
        if text is not None and kind not in self.advised:
            self.advised.add(kind)
            self.warn(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.reporter.warn(text)
