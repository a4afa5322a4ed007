"""Hugging Face's Trainer without gradients: the steps of a plain loop, runs that go on, and what is saved."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import blockzo as bz
from blockzo.contract import MOVED
from blockzo.federated.flower.loopback import free_port
from blockzo.integrations.trainer_settings import converted
from blockzo.integrations.transformers import HOOKS, ZOConfig, ZOTrainer, _ZerothOrder, check_hooks, zo
from blockzo.noise import canonical_name
from tests.core import zoo as models
from tests.integrations.trained import Seen, Stop, settings, trainer
from tests.together import run_together
from tests.warm import Started

RUNS: dict[str, dict[str, Any]] = {
    "mezo": {},
    "spzo": {"method": "spzo", "inner": 2, "blocks": "2", "block_rates": [1e-2, 1e-3], "weight_decay": 0.1},
    "accumulated": {"method": "fzoo", "directions": 3, "gradient_accumulation_steps": 2, "distribution": "gaussian"},
    "examples": {"per_example": True, "gradient_accumulation_steps": 2},
    "in place": {"evaluate": "in_place", "journal": None},
}


def plain_loop(run: Any, model: nn.Module, **given: Any) -> bz.ZO:
    """The same steps without a Trainer, from what its steps were made of."""
    args, each = run.args, run.args.gradient_accumulation_steps
    decays = {canonical_name(name) for name in run.get_decay_parameter_names(model)}
    rates = args.block_rates or [args.learning_rate] * len(run.zo.blocks)
    steps = len(run.inputs) // each
    plain = bz.ZO(
        model,
        None,
        args.estimator(),
        args.cut(model),
        # a linear schedule without warm-up
        lr=lambda step: [rate * (steps - step) / steps for rate in rates],
        eps=args.eps,
        distribution=args.distribution,
        seed=args.seed,
        weight_decay=args.weight_decay,
        no_decay=lambda name: name not in decays,
        per_example=args.per_example,
        evaluate=args.evaluate,
        **given,
    )
    for step in range(steps):
        parts = run.inputs[step * each : (step + 1) * each]
        plain.commit(plain.estimate(parts if each > 1 else parts[0]))
    return plain


@pytest.mark.parametrize("name", RUNS)
def test_a_step_is_that_of_a_plain_loop_to_the_bit(name: str, tmp_path: Path) -> None:
    base, again = models.make("llama"), models.make("llama")
    run = trainer(tmp_path, **{**RUNS[name], "save_strategy": "no", "max_steps": 3})
    run.train()
    plain = plain_loop(run, base)
    assert bz.digest(base) == bz.digest(run.model) != bz.digest(again)
    if run.args.journal:
        journal = bz.Journal.open(tmp_path / "journal.bz")
        journal.verify()
        bz.replay_(again, journal.records(), journal.layout)
        assert bz.digest(again) == bz.digest(base) == journal.final_digest
        told = [line["loss"] for line in run.state.log_history if "loss" in line]
        assert told == pytest.approx([sum(r.losses) / len(r.losses) for r in journal.records()], rel=1e-6)
    assert plain.step_number == run.state.global_step == 3
    assert run.state.total_flos > 0 and "grad_norm" not in run.state.log_history[0]


def test_a_run_that_is_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    given = {"method": "auto", "learning_rate": 1.0}
    stopped = trainer(tmp_path / "a", callbacks=[Stop(5)], **given)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert len(bz.Journal.open(tmp_path / "a/journal.bz")) == 5
    (tmp_path / "b/checkpoint-2").parent.mkdir()
    (tmp_path / "a/checkpoint-2").rename(tmp_path / "b/checkpoint-2")
    found = []
    for folder in ("a", "b"):
        run = trainer(tmp_path / folder, **given)
        # b has no journal but the copy in its checkpoint
        run.train(resume_from_checkpoint=True)
        found.append(((tmp_path / folder / "journal.bz").read_bytes()[-300:], bz.digest(run.model)))
        rebuilt = models.make("llama")
        journal = bz.Journal.open(tmp_path / folder / "journal.bz")
        bz.replay_(rebuilt, journal.records(), journal.layout)
        assert bz.digest(rebuilt) == journal.final_digest == found[-1][1]
    assert found[0][1] == found[1][1]
    with pytest.raises(bz.JournalError, match="exists, of 6 steps; pass resume_from_checkpoint"):
        trainer(tmp_path / "a", **given).train()


@pytest.mark.heavy  # starts a process and kills it
def test_a_killed_run_ends_with_the_same_file(tmp_path: Path) -> None:
    given = {"method": "spzo", "blocks": "0.5", "weight_decay": 0.1}
    whole = trainer(tmp_path / "whole", **given)
    whole.train()
    run = Started(["-m", "tests.integrations.trained", "killed", tmp_path / "killed"])
    assert run.wait() != 0
    assert len(bz.Journal.open(tmp_path / "killed/journal.bz")) == 5
    again = trainer(tmp_path / "killed", **given)
    again.train(resume_from_checkpoint=True)
    assert bz.digest(again.model) == bz.digest(whole.model)
    records = [bz.Journal.open(tmp_path / name / "journal.bz").records() for name in ("whole", "killed")]
    assert records[0] == records[1]


def test_the_best_model_has_the_journal_that_leads_to_it(tmp_path: Path) -> None:
    # the loss falls, so that the first is called the best
    given = {"metric_for_best_model": "eval_loss", "greater_is_better": True, "load_best_model_at_end": True}
    run = trainer(tmp_path, eval_strategy="steps", eval_steps=2, **given)
    run.train()
    best = int(run.state.best_model_checkpoint.rpartition("-")[2])
    assert best < 6
    assert [line["step"] for line in run.state.log_history if "eval_loss" in line] == [2, 4, 6]
    run.save_model(str(tmp_path / "saved"))
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    journal = bz.Journal.open(tmp_path / "saved/journal.bz")
    journal.verify()
    assert len(journal) == best and journal.final_digest == bz.digest(saved)
    # the others are in the last checkpoint, from where the run can go on
    assert len(bz.Journal.open(tmp_path / "checkpoint-6/journal.bz")) == 6
    more = trainer(tmp_path, max_steps=7)
    more.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert len(bz.Journal.open(tmp_path / "journal.bz")) == 7


def test_training_again_goes_on(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=2, save_strategy="no")
    run.train()
    run.train()
    journal = bz.Journal.open(tmp_path / "journal.bz")
    assert len(journal) == 4 and journal.final_digest == bz.digest(run.model)
    assert [record.lr[0] for record in journal.records()] == [1e-2, 5e-3] * 2


def test_training_again_with_other_arguments_is_by_them(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=2, save_strategy="no", journal=None)
    run.train()
    run.args.method, run.args.directions, run.args.eps = "fzoo", 3, 1e-2
    halfway = copy.deepcopy(run.model)
    run.inputs.clear()
    run.train()
    plain_loop(run, halfway)
    assert run.zo.method.describe() == bz.FZOO(3).describe()
    assert bz.digest(halfway) == bz.digest(run.model)


def test_a_journal_does_not_go_on_with_other_arguments(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=2, save_strategy="no")
    run.train()
    run.args.eps = 1e-3
    with pytest.raises(bz.JournalError, match="of 2 steps; pass resume_from_checkpoint=True .* another journal="):
        run.train()
    assert len(bz.Journal.open(tmp_path / "journal.bz")) == 2


def test_the_card_says_how_and_carries_the_journal(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=2, method="one-sided", directions=2)
    run.train()
    run.create_model_card()
    run.create_model_card(model_name="again")
    card = (tmp_path / "README.md").read_text()
    assert card.count("forward passes only") == 1 and "2 steps of OneSided(directions=2)" in card
    assert "optimizer:" not in card
    # the program on the card
    program = (
        card.partition("```python\n")[2].partition("```")[0].replace('"journal.bz"', repr(str(tmp_path / "journal.bz")))
    )
    held: dict[str, Any] = {"model": models.make("llama")}
    exec(program, held)
    assert bz.digest(held["model"]) == bz.digest(run.model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_16_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    model, base = (models.make("llama").to(dtype) for _ in range(2))
    run = trainer(tmp_path, model, max_steps=2, stochastic_rounding=True, label_smoothing_factor=0.1, learning_rate=0.1)
    run.train()
    journal = bz.Journal.open(tmp_path / "journal.bz")
    bz.replay_(base, journal.records(), journal.layout)
    assert bz.digest(base) == bz.digest(run.model) and next(run.model.parameters()).dtype == dtype


@pytest.mark.parametrize("moved", ["float32", "rounded"])
def test_moves_of_16_bits_are_rounded_as_told(moved: str, tmp_path: Path) -> None:
    """The losses are those of a plain loop, and a run goes on with what it began with; weights follow from its records alone."""
    model, base = (models.make("llama").bfloat16() for _ in range(2))
    given: dict[str, Any] = {"max_steps": 2, "eps": 1e-3, "moved": moved}
    run = trainer(tmp_path, model, **given)
    run.train()
    journal = bz.Journal.open(tmp_path / "journal.bz")
    assert journal.metadata["settings"]["moved"] == moved
    losses = {}
    for way in MOVED:
        other = models.make("llama").bfloat16()
        losses[way] = bz.ZO(other, eps=1e-3, seed=run.args.seed, moved=way).estimate(run.inputs[0]).losses
    assert journal.records()[0].losses == losses[moved] != losses["rounded" if moved == "float32" else "float32"]
    bz.replay_(base, journal.records(), journal.layout)
    assert bz.digest(base) == bz.digest(model)
    before = (tmp_path / "journal.bz").read_bytes()
    with pytest.raises(bz.JournalError, match=f"of a run with moved='{moved}'; found moved='auto'"):
        trainer(tmp_path, models.make("llama").bfloat16(), max_steps=3, eps=1e-3).train(resume_from_checkpoint=True)
    assert (tmp_path / "journal.bz").read_bytes() == before
    again = trainer(tmp_path, models.make("llama").bfloat16(), **{**given, "max_steps": 3})
    again.train(resume_from_checkpoint=True)
    assert len(bz.Journal.open(tmp_path / "journal.bz")) == 3


def test_label_smoothing_and_losses_of_the_user(tmp_path: Path) -> None:
    smooth = trainer(tmp_path / "a", label_smoothing_factor=0.5, max_steps=1, eps=1e-3)
    own = Seen(
        models.make("llama"),
        settings(tmp_path / "b", max_steps=1, eps=1e-3),
        train_dataset=smooth.train_dataset,
        compute_loss_func=lambda outputs, labels, num_items_in_batch: outputs.logits.float().square().mean(),
    )
    found = []
    for run in (smooth, own, trainer(tmp_path / "c", max_steps=1, eps=1e-3)):
        run.train()
        found.append(run.state.log_history[0]["loss"])
        batch = run.inputs[0]
        with torch.no_grad():
            expected = float(run.compute_loss(models.make("llama"), dict(batch)))
        assert found[-1] == pytest.approx(expected, rel=1e-2)
    assert len(set(found)) == 3


def test_a_sum_over_the_items_of_the_user_is_the_mean(tmp_path: Path) -> None:
    """`num_items_in_batch` is that of the micro-batch, whose means are averaged after."""

    def summed(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
        logits, after = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return nn.functional.cross_entropy(logits, after, reduction="sum") / num_items_in_batch

    class Own(transformers.Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            return summed(model(input_ids=inputs["input_ids"]), inputs["labels"], num_items_in_batch)

    given = {"max_steps": 1, "gradient_accumulation_steps": 2, "save_strategy": "no"}
    losses = []
    for kind, more in ((Seen, {}), (Seen, {"compute_loss_func": summed}), (zo(Own), {})):
        folder = tmp_path / str(len(losses))
        rows = trainer(tmp_path / "rows").train_dataset
        run = kind(models.make("llama"), settings(folder, **given), train_dataset=rows, **more)
        run.train()
        losses.append(bz.Journal.open(folder / "journal.bz").records()[0].losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[2] == pytest.approx(losses[0], rel=1e-5)


class Rates(transformers.TrainerCallback):
    """Sets the learning rate at one moment of a step."""

    def __init__(self, moment: str) -> None:
        setattr(self, moment, self.change)

    def change(self, args: Any, state: Any, control: Any, optimizer: Any = None, **facts: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 1e-5


def test_rates_of_a_callback_count_or_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a", max_steps=1, callbacks=[Rates("on_step_begin")])
    run.train()
    assert bz.Journal.open(tmp_path / "a/journal.bz").records()[0].lr == (1e-5,)
    with pytest.raises(RuntimeError, match=r"changed to \[1e-05\] after the step was estimated with \[0.01\]"):
        trainer(tmp_path / "b", max_steps=1, callbacks=[Rates("on_pre_optimizer_step")]).train()


class Written(transformers.TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **facts: Any) -> None:
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(0.9)


@pytest.mark.parametrize(
    "given", [{"max_steps": 2}, {"max_steps": 1}, {"max_steps": 1, "save_strategy": "no"}], ids=str
)
def test_weights_that_a_callback_writes_are_in_no_record(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(bz.JournalError, match="embed_tokens.weight was written since the last step"):
        trainer(tmp_path / "a", callbacks=[Written()], **given).train()
    trainer(tmp_path / "b", callbacks=[Written()], journal=None, **given).train()


def test_an_update_that_was_interrupted_is_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, max_steps=3, save_steps=1)
    real, steps = bz.ops.replay_, []

    def interrupted(model: Any, records: Any, layout: Any) -> None:
        real(model, records, layout)
        steps.extend(records)
        if len(steps) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("blockzo.ops.replay_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.train()
    with pytest.raises(bz.JournalError, match="stopped while it applied step 1, .* resume from a checkpoint"):
        run.train()
    run.train(resume_from_checkpoint=True)
    again = models.make("llama")
    journal = bz.Journal.open(tmp_path / "journal.bz")
    bz.replay_(again, journal.records(), journal.layout)
    assert bz.digest(again) == bz.digest(run.model) == journal.final_digest


def test_what_steps_ignore_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="optim=.*sgd.*max_grad_norm=0.5, .*gradient_checkpointing=True: steps ignore"):
        run = trainer(tmp_path, max_steps=1, optim="sgd", max_grad_norm=0.5, gradient_checkpointing=True)
    with warnings.catch_warnings():
        # evaluations run as a batch all the same
        warnings.simplefilter("error", UserWarning)
        run.train()
        trainer(tmp_path / "defaults")


def test_smaller_batches_after_too_little_memory(tmp_path: Path) -> None:
    class Small(Seen):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
            if len(inputs["input_ids"]) > 2:
                raise RuntimeError("CUDA out of memory.")
            return super().compute_loss(model, inputs, *rest, **options)

    run = trainer(tmp_path, max_steps=2, auto_find_batch_size=True, kind=Small)
    run.create_optimizer_and_scheduler(2)  # as some do before they train
    run.train()
    journal = bz.Journal.open(tmp_path / "journal.bz")
    assert len(journal) == 2 and journal.final_digest == bz.digest(run.model)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"fp16_full_eval": True}, "would leave the weights in float16"),
        ({"bf16": True}, "dtype=torch.bfloat16"),
        ({"fp16": True}, "dtype=torch.float16"),
        ({"neftune_noise_alpha": 0.1}, "neftune_noise_alpha=0.1 does not go"),
        ({"method": "adam"}, 'expected "auto", one of'),
        ({"moved": "bf16"}, "moved is 'bf16'; expected one of auto, float32, rounded"),
        ({"method": "mezo", "inner": 2}, "has no setting inner"),
        ({"method": "auto", "directions": 2}, "chooses by itself"),
        ({"method": "tree"}, "needs levels"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_are_refused(given: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        settings(tmp_path, **given)


def test_a_trainer_that_would_not_call_an_override_is_refused() -> None:
    private = {name for name in vars(_ZerothOrder) if name.startswith("_") and hasattr(transformers.Trainer, name)}
    assert {name for name in private if not name.startswith("__")} == set(HOOKS)
    with pytest.raises(ImportError, match="has no _prepare_for_training, .* 'transformers>=5.3'"):
        check_hooks(object)


def test_what_else_is_refused(tmp_path: Path) -> None:
    adam = torch.optim.Adam(models.make("llama").parameters())
    with pytest.raises(ValueError, match="an optimizer was given"):
        ZOTrainer(models.make("llama"), settings(tmp_path), optimizers=(adam, None))
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 0.5)
    for given in ((adam, None), (None, schedule)):
        with pytest.raises(ValueError, match="an optimizer or a schedule was given"):
            ZOTrainer(models.make("llama"), settings(tmp_path), *[None] * 8, given)
    with pytest.raises(ValueError, match="bf16=True does not go"):
        ZOTrainer(models.make("llama"), transformers.TrainingArguments(str(tmp_path), bf16=True, use_cpu=True))
    for method in ("create_optimizer", "training_step"):
        with pytest.raises(TypeError, match=f"Own.{method} would not be called"):
            zo(type("Own", (transformers.Trainer,), {method: lambda self, *given: None, "__module__": "mine"}))
    with pytest.raises(ValueError, match="3 numbers for 2 blocks"):
        trainer(tmp_path, blocks="2", method="spzo", block_rates=[1.0, 1.0, 1.0]).train()
    run = trainer(tmp_path)
    run.is_fsdp_enabled = True  # as `accelerate launch --use_fsdp` sets it
    with pytest.raises(ValueError, match="fsdp=True does not go"):
        run._check_process()
    with pytest.raises(TypeError, match="subclass of transformers.Trainer"):
        zo(nn.Linear)
    with pytest.raises(RuntimeError, match="training_step"):
        run = trainer(tmp_path / "a", max_steps=1)
        run.train()
        run._rates.step()


def test_any_trainer_and_any_arguments(tmp_path: Path) -> None:
    class Own(transformers.Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return (2 * found[0], found[1]) if return_outputs else 2 * found

    assert zo(Own) is zo(Own) is zo(zo(Own)) and zo(transformers.TrainingArguments) is ZOConfig
    data = trainer(tmp_path / "x").train_dataset
    plain = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", use_cpu=True, learning_rate=1e-3
    )
    run = zo(Own)(models.make("llama"), plain, train_dataset=data)
    run.train()
    assert isinstance(run.args, ZOConfig) and run.args.method == "mezo" and run.args.learning_rate == 1e-3
    assert run.state.log_history[0]["train_loss"] > 1.8 * trainer(tmp_path / "y", max_steps=1).evaluate()["eval_loss"]
    # as the Trainer saves them
    held = torch.load(tmp_path / "checkpoint-1/training_args.bin", weights_only=False)
    assert type(held) is ZOConfig and held.to_dict() == run.args.to_dict()
    with_fields = converted(ZOConfig(str(tmp_path), method="spzo"), transformers.Seq2SeqTrainingArguments)
    assert pickle.loads(pickle.dumps(with_fields)).method == "spzo"
    assert isinstance(with_fields, transformers.Seq2SeqTrainingArguments)
    assert ZOConfig(str(tmp_path), method="auto").learning_rate == 1.0


def test_arguments_of_a_command_line() -> None:
    parser = transformers.HfArgumentParser(ZOConfig)
    line = "--output_dir out --method spzo --inner 3 --blocks 0.5 --block_rates 1e-4 1e-2 --eps 1e-2 --use_cpu"
    (found,) = parser.parse_args_into_dataclasses(line.split())
    assert found.estimator() == bz.SPZO(1, 3) and found.block_rates == [1e-4, 1e-2]
    cuts = [settings(Path("out"), blocks=text).cut(models.make("llama")).starts for text in ("none", "auto", "1,0.5")]
    assert cuts == [[0], [0, 2], [0, 1, 2]]
    assert found.learning_rate == 1e-6 and found.described()["method"]["name"] == "SPZO"


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
@pytest.mark.heavy  # starts processes that talk
def test_processes_step_as_one(tmp_path: Path) -> None:
    port = free_port()
    run_together([["tests.integrations.trained", "rank", tmp_path, rank, 2, port] for rank in range(2)])
    told = [(tmp_path / f"told{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1]
    alone = trainer(
        tmp_path / "alone",
        method="fzoo",
        directions=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
    )
    alone.train()
    losses = [line["loss"] for line in alone.state.log_history if "loss" in line]
    assert told[0] == f"{bz.digest(alone.model)}\n{losses}\n"
    base, journal = models.make("llama"), bz.Journal.open(tmp_path / "saved/journal.bz")
    bz.replay_(base, journal.records(), journal.layout)
    assert bz.digest(base) == bz.digest(alone.model)
