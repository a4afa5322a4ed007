"""Hugging Face's Trainer, and any subclass of it such as TRL's SFTTrainer, without gradients (docs/trainer.md).

    from blockzo.integrations.transformers import ZOConfig, ZOTrainer, zo

A step of the Trainer is `ZO.estimate` on all its micro-batches; `optimizer.step()` is `ZO.commit`. All else is the Trainer's.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
import transformers
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from blockzo import ops
from blockzo.integrations import checkpoints, model_card
from blockzo.integrations.adapter_notes import note_of
from blockzo.integrations.block_rates import BlockRates
from blockzo.integrations.checkpoints import Place
from blockzo.integrations.epoch_begin import EpochBegin
from blockzo.integrations.going_on import GoesOn
from blockzo.integrations.model_notes import TRAINER, described
from blockzo.integrations.token_counts import counted_once
from blockzo.integrations.trainer_settings import ZOConfig, converted, refuse, with_settings
from blockzo.integrations.untouched import Untouched
from blockzo.journal.file import Journal, JournalError
from blockzo.journal.record import Record
from blockzo.methods.auto import Auto
from blockzo.noise import canonical_name
from blockzo.optim.cutting import default_blocks, fine_blocks
from blockzo.optim.distributed import DistributedZO
from blockzo.optim.micro_batches import MicroBatches, loss_terms
from blockzo.optim.step import StepResult
from blockzo.optim.zo import ZO

__all__ = ["ZOConfig", "ZOTrainer", "zo"]

T = TypeVar("T", bound=type)

HOOKS = ("_prepare_for_training", "_clip_grad_norm", "_get_grad_norm", "_save_checkpoint", "_save", "_load_best_model")
"""Methods of the Trainer that are overridden though it does not document them: what it does not have, it does not call."""

OF_OPTIMISER = (
    "eps",
    "distribution",
    "seed",
    "weight_decay",
    "per_example",
    "evaluate",
    "moved",
    "stochastic_rounding",
    "rank",
)
"""Arguments that go to the optimiser by their names."""


def check_hooks(trainer: type) -> None:
    """ImportError where the Trainer lacks a method that is overridden."""
    if lacks := [name for name in HOOKS if not hasattr(trainer, name)]:
        raise ImportError(
            f"the Trainer of transformers {transformers.__version__} has no {', '.join(lacks)}, which blockzo overrides; "
            "those of 5.3 to 5.24 have them: pip install 'transformers>=5.3'"
        )


check_hooks(Trainer)


class _ZerothOrder(GoesOn):
    """What `zo` puts before a Trainer.

    Attributes:
        zo: the optimiser, from the first `train` on. journal: of the run; None where there is none, or before the first `train`.
    """

    args: Any
    model: Any
    accelerator: Any

    def __init__(self, model: Any = None, args: Any = None, *rest: Any, **options: Any) -> None:
        args = converted(args, _arguments_of(type(self)))
        if options.get("optimizers", (None, None))[0] is not None or options.get("optimizer_cls_and_kwargs"):
            raise ValueError("an optimizer was given; expected none, as steps are those of ZOConfig(method=...)")
        if (
            isinstance(model, nn.Module)
            and options.get("peft_config")
            and not getattr(args, "chat_template_path", None)
        ):
            from blockzo.integrations.peft import adapter

            model = adapter(model, options.pop("peft_config"), args.seed)
        self.zo: ZO | None = None
        self.journal: Journal | None = None
        self._micro_batches: list[Any] = []
        self._place: Place | None = None
        self._flops, self._trial, self._checkpoint = 0.0, None, None
        if ignored := args.ignored():
            warnings.warn(
                f"{', '.join(f'{name}={value!r}' for name, value in ignored.items())}: steps ignore it, as nothing is "
                "differentiated (docs/trainer.md)",
                stacklevel=2,
            )
            args.without_recomputing()
        self._left: Place | None = None
        self._untouched = Untouched()
        self._again: Record | None = None
        super().__init__(model, args, *rest, **options)  # type: ignore[call-arg]
        self._check_process()
        if self.optimizer is not None or self.lr_scheduler is not None:
            raise ValueError(
                "an optimizer or a schedule was given; expected none: steps are those of ZOConfig(method=...), rates those of "
                "lr_scheduler_type and learning_rate"
            )
        self.add_callback(EpochBegin())

    def _check_process(self) -> None:
        """What a launcher may ask for, past the arguments."""
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process; expected one a process: `accelerate launch` or torchrun, or "
                "CUDA_VISIBLE_DEVICES with one of them"
            )
        refuse({"fsdp": self.is_fsdp_enabled, "deepspeed": self.is_deepspeed_enabled})  # type: ignore[attr-defined]
        if self.accelerator.mixed_precision != "no":
            refuse({self.accelerator.mixed_precision: True})

    # a step

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Estimates when the last micro-batch of a step is there; the loss of the step is returned then, 0 before."""
        self._micro_batches.append(self._prepare_inputs(inputs))  # type: ignore[attr-defined]
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        batches, self._micro_batches = self._micro_batches, []
        # losses that tell training from evaluation look at the root
        model.train()
        assert self.zo is not None
        self._check_untouched()
        with counted_once(self, batches):
            result = self.zo.estimate(batches[0] if len(batches) == 1 else MicroBatches(batches))
        if self._again is not None:
            self._compare(self._again, result.record)
        self._rates.wait(result)
        self._flops = result.flops / self.args.world_size
        return torch.tensor(result.loss, device=self.args.device)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """None where all steps are done: the Trainer looks only after one, and did one more from a last checkpoint."""
        if self.state.global_step >= self.state.max_steps > 0:  # type: ignore[attr-defined]
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]

    def _loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of one micro-batch, as the Trainer computes it."""
        if hasattr(self, "_metrics"):
            # TRL's: the layers are in evaluation mode, and what they are run for is training
            model.training = True
        with self.compute_loss_context_manager(), self._own_items(batch) as items:  # type: ignore[attr-defined]
            loss: Tensor = self.compute_loss(model, dict(batch), **items)  # type: ignore[attr-defined]
        return loss

    @contextmanager
    def _own_items(self, batch: Any) -> Iterator[dict[str, Any]]:
        """For losses of the user: what the mean of this micro-batch is over; means of micro-batches are averaged here."""
        if self.compute_loss_func is None and _of_user(type(self), "compute_loss") is None:  # type: ignore[attr-defined]
            yield {}
            return
        whole, self.args.average_tokens_across_devices = self.args.average_tokens_across_devices, False
        try:
            yield {"num_items_in_batch": torch.tensor(loss_terms(self.model, batch), device=self.args.device)}
        finally:
            self.args.average_tokens_across_devices = whole

    def _clip_grad_norm(self, model: nn.Module) -> None:
        """There are no gradients."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        """There are no gradients."""

    def floating_point_ops(self, inputs: Any) -> float:
        """Forward FLOPs of the step, as counted while it ran."""
        found, self._flops = self._flops, 0.0
        return found

    # a run

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, *rest: Any, **options: Any) -> Any:
        self._trial, self._micro_batches = trial, []
        resume_from_checkpoint = self._whole(resume_from_checkpoint)
        left, self._left = self._left, None
        if left is not None and self.journal is not None and resume_from_checkpoint in (None, False):
            self._check_left(left)
        try:
            result = super().train(resume_from_checkpoint, trial, *rest, **options)  # type: ignore[misc]
            self._check_untouched()
            if self.journal is not None:
                self._left = self._here()
                self.journal.finish(self._left.digest)
        finally:
            # another run may go on with the file
            if self.journal is not None:
                self.journal.close()
        return result

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        self._checkpoint = resume_from_checkpoint
        EpochBegin.of(self).read(resume_from_checkpoint)
        with _replicas(self.accelerator):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)  # type: ignore[misc]

    def create_optimizer(self, model: Any = None) -> BlockRates:
        args, blocks = self.args, self._blocks()
        rates = args.block_rates or [args.learning_rate] * len(blocks)
        if len(rates) != len(blocks):
            raise ValueError(f"block_rates has {len(rates)} numbers for {len(blocks)} blocks; expected one each")
        if self.journal is not None:
            # of an attempt with larger batches, or of a run that is over
            self.journal.close()
        if self.zo is None or self.zo.blocks is not blocks:
            self.zo, self.journal, place = self._optimiser(blocks, rates), None, None
            self._told = self._settings()
        else:
            place = self._here()
            if self.journal is not None and self._checkpoint is None and self.journal.next_step != place.step:
                raise JournalError(
                    f"the last train() was stopped while it applied step {place.step}, which {self.journal.path} holds: the "
                    "weights may be those before it, after it, or neither; resume from a checkpoint"
                )
        self._rates = BlockRates(blocks, rates, self._commit)
        self.zo.lr = self._rates.rates
        if self._checkpoint is not None:
            place = self._checked(self._checkpoint)
        self._begin(place)
        self._untouched.note(self.model)
        self.optimizer = self._rates
        return self._rates

    def _commit(self, result: StepResult) -> None:
        assert self.zo is not None
        self.zo.commit(result)
        self._untouched.note(self.model)

    def _check_untouched(self) -> None:
        if self.args.journal is not None:
            self._untouched.check(self.model)

    def _blocks(self) -> Any:
        if self.zo is not None and self.zo.model is self.model and self._told == self._settings():
            return self.zo.blocks
        method = self.args.estimator()
        cut = self.args.cut(self.model)
        return cut or (fine_blocks(self.model) if isinstance(method, Auto) else default_blocks(self.model, method))

    def _settings(self) -> dict[str, Any]:
        """What the optimiser was made of: `train` again with other arguments makes another, from step 0."""
        args = self.args
        return {
            "method": args.estimator().describe(),
            **{name: getattr(args, name) for name in (*OF_OPTIMISER, "blocks")},
            "journal": None if args.journal is None else str(self._journal_path()),
        }

    def _journal_path(self) -> Path:
        return Path(self._get_output_dir(self._trial), self.args.journal)  # type: ignore[attr-defined]

    def _optimiser(self, blocks: Any, rates: list[float]) -> ZO:
        args = self.args
        decays = {canonical_name(name) for name in self.get_decay_parameter_names(self.model)}  # type: ignore[attr-defined]
        settings = {
            **{name: getattr(args, name) for name in OF_OPTIMISER},
            "method": args.estimator(),
            "blocks": blocks,
            "lr": rates,
            "no_decay": (lambda name: name not in decays) if args.weight_decay else None,
        }
        if args.world_size > 1:
            return DistributedZO(self.model, self._loss, split="batch", **settings)
        return ZO(self.model, self._loss, **settings)

    def _begin(self, place: Place | None) -> None:
        """With the journal of the run, at a checkpoint's step or at the weights as they are."""
        zo, args = self.zo, self.args
        assert zo is not None
        if args.journal is None:
            if place is not None and zo.planner is None and isinstance(zo.method, Auto):
                raise JournalError('the planner of "auto" goes on from a journal; expected journal=..., not None')
            zo.step_number = 0 if place is None else place.step
            return
        path = self._journal_path()

        def opened() -> Journal:
            if place is not None:
                journal, after = checkpoints.resumed(path, self._checkpoint, place, args.moved)
                self._again = after[0] if after and self._checkpoint is not None else None
                return journal
            metadata = {
                "settings": args.described(),
                TRAINER: type(self).__name__,
                **described(self.model),
                **note_of(self.model),
            }
            exact = args.evaluate == "perturbed"
            return checkpoints.begun(path, ops.digest(self.model), zo.layout, metadata, exact)

        if isinstance(zo, DistributedZO):
            self.journal = zo.ranks.together(lambda: opened() if zo.ranks.rank == 0 else None)
            zo.attach(self.journal, None if place is None else place.step)
        else:
            self.journal = opened()
            zo.attach(self.journal, None if place is None else place.step)

    # what is saved

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._check_untouched()
        self._place = self._here()
        try:
            if self.journal is not None and len(self.journal) and self.journal.records()[-1].digest is None:
                self.journal.add_digest(self._place.digest)
            if self.args.should_save:
                name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"  # type: ignore[attr-defined]
                # what is there is whole no more
                Path(self._get_output_dir(trial), name, checkpoints.LAST).unlink(missing_ok=True)  # type: ignore[attr-defined]
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self._place = None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder, carries = output_dir or self.args.output_dir, self.zo is not None and self.args.should_save
        target = Path(folder, checkpoints.JOURNAL)
        if carries and self.journal is not None and self._place is None:
            checkpoints.check_target(self.journal, target)
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        if not carries:
            return
        (self._place or self._here()).write(folder)
        if self.journal is not None:
            checkpoints.carry(self.journal.path, target)
        if self._place is not None:
            EpochBegin.of(self).write(folder)

    def _load_best_model(self) -> None:
        """The journal ends with the weights that are kept; that of all steps is in the last checkpoint."""
        super()._load_best_model()  # type: ignore[misc]
        assert self.zo is not None
        folder = self.state.best_model_checkpoint  # type: ignore[attr-defined]
        place = Place.read(folder)
        if place is None:
            return
        if (found := ops.digest(self.model)) != place.digest:
            raise JournalError(
                f"the best model was saved in {folder} with weights {place.digest}; loaded from it, the model has {found}. The "
                "journal holds all steps; load the best weights yourself"
            )
        self.zo.step_number = place.step
        self._untouched.note(self.model)
        if self.journal is not None:
            self.journal.truncate(place.step)

    def create_model_card(self, *args: Any, **options: Any) -> None:
        super().create_model_card(*args, **options)  # type: ignore[misc]
        if self.zo is not None and self.is_world_process_zero():  # type: ignore[attr-defined]
            text = model_card.section(self.journal, self.args.described(), self.zo.step_number)
            model_card.add(Path(self.args.output_dir, "README.md"), text)


def _of_user(trainer: type, method: str) -> type | None:
    """The class that overrides a method of the Trainer, where it is neither ours nor of transformers or TRL."""
    first = next(kind for kind in trainer.__mro__ if method in vars(kind) and kind is not _ZerothOrder)
    return None if first.__module__.partition(".")[0] in ("blockzo", "transformers", "trl") else first


@contextmanager
def _replicas(accelerator: Any) -> Iterator[None]:
    """Models are prepared as for evaluation: each process has its own, and no gradient is averaged."""
    prepare = accelerator.prepare_model
    accelerator.prepare_model = partial(prepare, evaluation_mode=True)
    try:
        yield
    finally:
        del accelerator.prepare_model


def _arguments_of(trainer: type) -> type[TrainingArguments]:
    """The class of arguments that a Trainer's `__init__` asks for."""
    for kind in trainer.__mro__:
        begin = vars(kind).get("__init__")
        given = None if begin is None or kind is _ZerothOrder else inspect.signature(begin).parameters.get("args")
        if given is not None and not isinstance(given.annotation, str):
            found = [
                one
                for one in (given.annotation, *get_args(given.annotation))
                if isinstance(one, type) and issubclass(one, TrainingArguments)
            ]
            if found:
                return max(found, key=lambda one: len(one.__mro__))
    return TrainingArguments


@cache
def zo(kind: T) -> T:
    """The same without gradients: of a subclass of `Trainer`, or of `TrainingArguments`.

    A Trainer's subclass takes `ZOConfig`, its own arguments as `zo` makes them, or plain ones (then a step is MeZO's).

    Raises:
        TypeError: it is neither, or it overrides what blockzo does in another way (`create_optimizer`, `training_step`).
    """
    if not isinstance(kind, type) or not issubclass(kind, (Trainer, TrainingArguments)):
        raise TypeError(f"zo takes a subclass of transformers.Trainer or TrainingArguments; found {kind!r}")
    if issubclass(kind, TrainingArguments):
        return with_settings(kind)
    if issubclass(kind, _ZerothOrder):
        return kind
    for method in ("create_optimizer", "training_step"):
        if own := _of_user(kind, method):
            raise TypeError(
                f"{own.__name__}.{method} would not be called, as a step is made of evaluations; leave it out, or override it in "
                f"a subclass of zo({kind.__name__})"
            )
    names = {"__module__": __name__, "__doc__": f"`{kind.__name__}` with forward passes only."}
    return type(f"ZO{kind.__name__}", (_ZerothOrder, kind), names)  # type: ignore[return-value]


class ZOTrainer(_ZerothOrder, Trainer):
    """`transformers.Trainer` with forward passes only; what it takes is what `Trainer` takes, and `ZOConfig` as arguments."""
