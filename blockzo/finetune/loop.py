"""One run: from settings to a fine-tuned model, its journal and its figures; and the same run continued after any kill.

The state of a run is its base weights and the journal's records. Batches, schedules and the rows of evaluations are functions
of the settings and the step, so a continued run does what an uninterrupted one would have done, to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import blockzo
from blockzo import ZO, Journal, JournalError, MeZO, Record, cost, digest
from blockzo.finetune import diagnostics, output
from blockzo.finetune.errors import UserError
from blockzo.finetune.facts import RunFacts
from blockzo.finetune.interrupt import Interrupts
from blockzo.finetune.metrics import Scores, measure, scores
from blockzo.finetune.models.identity import identity_of
from blockzo.finetune.models.loading import DTYPES, save, weight_bytes
from blockzo.finetune.number_lists import numbers
from blockzo.finetune.prepare import Prepared, prepare
from blockzo.finetune.progress import Reporter
from blockzo.finetune.report import draw_curve, summary
from blockzo.finetune.resuming import resumed
from blockzo.finetune.settings import Settings
from blockzo.ops.params import named_tensors
from blockzo.optim.schedules import rates

EVALUATION_BATCH = 32


def finetune(
    settings: Settings, folder: Path, reporter: Reporter | None = None, fallback: str | None = None
) -> dict[str, Any]:
    """Runs from the beginning. `folder` must be empty or new; afterwards it holds model/, journal.bz and the rest.

    Returns:
        What summary.json holds.

    Raises:
        UserError, JournalError: see the message; the journal in `folder` is valid.
        Interrupted: after a signal; the run can be continued.
    """
    reporter = reporter or Reporter()
    output.check_folder(folder)
    settings = replace(settings, eval_every=settings.interval)
    _threads(settings.threads)
    prepared = prepare(settings, reporter.say, fallback)
    run = Run(settings, folder, prepared, reporter)
    output.check_space(folder, run.bytes_needed())
    output.make_folder(folder)
    journal = Journal.create(
        folder / output.JOURNAL,
        base_digest=run.base_digest,
        layout=run.blocks.layout,
        metadata=run.header(),
        exact=not settings.in_place,
    )
    return run.go(journal)


def resume(
    folder: Path, given: Mapping[str, Any], reporter: Reporter | None = None, fallback: str | None = None
) -> dict[str, Any]:
    """Continues the run in `folder`; `given` are the settings that the user gave again.

    Raises: as `finetune`; UserError names what differs from the journal: settings, data or model.
    """
    reporter = reporter or Reporter()
    path = folder / output.JOURNAL
    if not path.is_file():
        raise UserError(f"{path} does not exist, so there is nothing to resume; start the run without --resume")
    journal = Journal.resume(path)
    try:
        if journal.left_out is not None:
            reporter.warn(f"{path}: {journal.left_out} and done again")
        facts = RunFacts.of(journal)
        settings = resumed(Settings.from_dict(facts.settings), given)
        settings = _with_source(settings, facts, given)
        if settings.steps < len(journal):
            raise UserError(f"the run has {len(journal)} steps already, --steps is {settings.steps}; give that or more")
        if journal.finished and settings.steps != len(journal):
            raise UserError(
                f"the run ended after {len(journal)} steps and cannot be made longer; start another from its model"
            )
        if "threads" not in given:
            settings = replace(settings, threads=facts.threads)
        _threads(settings.threads)
        prepared = prepare(settings, reporter.say, fallback)
        run = Run(settings, folder, prepared, reporter)
        run.check(journal, facts)
    except BaseException:
        journal.close()
        raise
    return run.go(journal)


class Run:
    """The parts of a run that new and continued ones share."""

    def __init__(self, settings: Settings, folder: Path, prepared: Prepared, reporter: Reporter) -> None:
        self.settings = settings
        self.folder = folder
        self.prepared = prepared
        self.reporter = reporter
        self.dtype = DTYPES[settings.dtype]
        self.blocks = prepared.blocks(settings)
        self.order = prepared.order(settings)
        self.rows = prepared.evaluation_rows(settings)
        self.base_digest = digest(prepared.model)
        self.loss_fn = prepared.scorer.loss
        self.zo = ZO(
            prepared.model,
            self.loss_fn,
            method=settings.estimator(),
            blocks=self.blocks,
            lr=rates(settings.schedule, self._each("lr"), settings.steps, settings.warmup),
            eps=numbers("--eps", settings.eps) if "," in settings.eps else float(settings.eps),
            distribution=settings.distribution,
            seed=settings.seed,
            weight_decay=settings.weight_decay,
            stochastic_rounding=settings.stochastic_rounding,
            evaluate="in_place" if settings.in_place else "perturbed",
            per_example=settings.per_example,
        )
        self.sample = diagnostics.WeightSample(named_tensors(prepared.model), settings.seed)
        self.advised: set[str] = set()
        self.warnings = list(prepared.notes)
        self.before: Scores | None = None
        self.after: Scores | None = None
        self._flops: dict[tuple[int, ...], list[int]] = {}
        self._began = time.monotonic()
        self._earlier = 0.0

    def _each(self, name: str) -> list[float]:
        values = numbers(f"--{name}", getattr(self.settings, name))
        return values * len(self.blocks) if len(values) == 1 else values

    def parameters(self) -> int:
        """Weights that are trained."""
        return sum(tensor.numel() for tensor in named_tensors(self.prepared.model).values())

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
            self._warn(unchecked)
        facts.check_data(self.prepared.data_facts())
        versions = self.header()["versions"]
        for name, old in facts.versions.items():
            if name != "blockzo" and versions.get(name) not in (None, old):
                self._warn(f"{name} was {old}, now it is {versions[name]}: later losses may differ in their last bits")

    def go(self, journal: Journal) -> dict[str, Any]:
        """Trains what is left, then writes everything."""
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
                    self._train(journal, metrics, interrupts)
                    journal.finish(digest(self.prepared.model))
                if self.after is None:
                    self.after = self._final(interrupts)
            finally:
                journal.close()
                if metrics is not None:
                    metrics.close()
                self.reporter.stop()
            with interrupts.at_once():
                return self._write(journal, metrics)

    def _begin(self, metrics: output.Metrics, interrupts: Interrupts) -> None:
        """The scores before training, from line 0 of the metrics where a continued run has it."""
        if metrics.steps >= 0:
            self.before = Scores(**metrics.lines[0]["before"])
            self._earlier = metrics.lines[-1]["seconds"]
            return
        self.reporter.say("scoring the held-out rows before training")
        every = list(range(len(self.prepared.held_out.ids)))
        values = self._measure(every, interrupts)
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
        batch = self.prepared.scorer.batch(self.prepared.train, self.order.rows(number - 1))
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

    def _step(self, batch: Mapping[str, torch.Tensor], number: int) -> tuple[Record, float]:
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

    def _counted(self, batch: Mapping[str, torch.Tensor], record: Record) -> float:
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

    def _final(self, interrupts: Interrupts) -> Scores:
        every = list(range(len(self.prepared.held_out.ids)))
        return self._scores(self._measure(every, interrupts), every)

    def _scores(self, values: torch.Tensor, rows: list[int]) -> Scores:
        return scores(self.prepared.scorer.kind, values, [self.prepared.held_out.labels[row] for row in rows])

    def _evaluation(self, values: torch.Tensor) -> dict[str, Any]:
        found = self._scores(values, self.rows).as_dict()
        return {"eval_rows": found.pop("rows"), "eval_loss": found.pop("loss"), **found}

    def _seconds(self) -> float:
        return round(self._earlier + time.monotonic() - self._began, 3)

    def _advise(self, kind: str, text: str | None) -> None:
        """Says something once a run."""
        if text is not None and kind not in self.advised:
            self.advised.add(kind)
            self._warn(text)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.reporter.warn(text)

    def _write(self, journal: Journal, metrics: output.Metrics) -> dict[str, Any]:
        self.reporter.say(f"writing {self.folder}")
        output.write_whole(self.folder / output.MODEL, lambda place: save(self.prepared.loaded, place))
        drawn = draw_curve(metrics.lines, self.folder / output.CURVE)
        if not drawn:
            self._warn(
                "matplotlib is not installed, so there is no curve.png; pip install 'blockzo[finetune]' brings it"
            )
        assert self.before is not None and self.after is not None
        found = summary(self, journal, metrics.lines, drawn)
        output.write_json(self.folder / output.SUMMARY, found)
        return found


def _threads(count: int | None) -> None:
    if count is not None:
        torch.set_num_threads(count)


def _with_source(settings: Settings, facts: RunFacts, given: Mapping[str, Any]) -> Settings:
    """The model that was really used: a fallback, where there was one, stays the same when the run continues."""
    source = facts.source or settings.model
    if "model" in given or Path(source).name.lower() == settings.model.lower():
        return settings
    return replace(settings, model=source)
