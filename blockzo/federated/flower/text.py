"""Fine-tuning a language model on a task of `blockzo finetune`, every node on a file of its own (needs blockzo[finetune]).

Keys of the configuration are the options of `blockzo finetune` without the dashes in front: model, task, train, data-dir, method,
inner, lr, batch, seed. Where "partition" is "iid", all nodes read one file and take their part by partition-id (a test bed).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from blockzo.federated.client import partition
from blockzo.federated.client.finetuning import Batches, planner_of, run_settings
from blockzo.federated.client.worker import Weights, Worker
from blockzo.federated.flower.plan import Plan, server_folder
from blockzo.federated.protocol.settings import RoundPolicy
from blockzo.finetune.errors import UserError
from blockzo.finetune.metrics import measure, scores
from blockzo.finetune.models.dtypes import AUTO
from blockzo.finetune.prepare import Prepared, prepare
from blockzo.finetune.settings import Settings
from blockzo.journal.file import Journal
from blockzo.ops.params import named_tensors

PARTITIONS = ("own", "iid")


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Settings from a Flower configuration, where "" stands for what was not given.

    Python code that comes with a model is run only where the node's own environment has BLOCKZO_TRUST_REMOTE_CODE=1: the
    configuration is partly the server's.

    Raises:
        UserError: one of them is wrong.
    """
    given = {f.name: config.get(f.name.replace("_", "-"), "") for f in fields(Settings)}
    if given.pop("trust_remote_code"):
        raise UserError(
            "trust-remote-code cannot be set by a run; whoever owns a node sets BLOCKZO_TRUST_REMOTE_CODE=1 in its environment"
        )
    trust = os.environ.get("BLOCKZO_TRUST_REMOTE_CODE") == "1"
    found = Settings(**{name: value for name, value in given.items() if value != ""}, trust_remote_code=trust)
    # nodes with and without a GPU begin at the same bits
    return replace(found, dtype="float32") if found.dtype == AUTO else found


def _weights(prepared: Prepared, settings: Settings) -> Weights:
    def base() -> Mapping[str, Tensor]:
        # read again when it is needed; a copy would double the memory
        return named_tensors(prepare(settings, training=False).model)

    return Weights(prepared.blocks(settings), base)


def worker(config: Mapping[str, Any]) -> Worker:
    """Model, training rows and held-out rows of one node.

    Raises:
        UserError, ValueError: data, model and settings do not fit.
    """
    settings = settings_of(config)
    prepared = prepare(settings)
    number, count = int(config.get("partition-id", 0)), int(config.get("num-partitions", 1))
    kind = str(config.get("partition") or "own")
    if kind not in PARTITIONS:
        raise ValueError(f"partition is {kind!r}; expected one of {', '.join(PARTITIONS)}")
    rows = list(range(len(prepared.train.ids)))
    if kind == "iid":
        rows = partition.iid(len(rows), count, settings.seed)[number]
    batches = Batches(prepared, rows, settings, number, int(config.get("local-steps", 1)))

    def held_out() -> tuple[int, float, float]:
        chosen = prepared.evaluation_rows(settings)
        values = measure(prepared.model, prepared.scorer, prepared.held_out, chosen)
        found = scores(prepared.scorer.kind, values, [prepared.held_out.labels[row] for row in chosen])
        return found.rows, found.loss, found.accuracy or 0.0

    return Worker(_weights(prepared, settings), batches, prepared.scorer.loss, held_out)


def _begun_with(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The method as the journal of this run says it, where it goes on."""
    path = server_folder(config) / "journal"
    found: Mapping[str, Any] = (
        Journal.open(path).metadata.get("federated", {}).get("method", {}) if path.exists() else {}
    )
    return found


def plan(config: Mapping[str, Any]) -> Plan:
    """Also reads "rounds", "local-steps", "clients", "deadline", "secure-sum", "run". The model is the replica.

    Raises:
        UserError, ValueError: data, model and settings do not fit; a planner with what it does not go with (docs/federated.md).
    """
    settings = settings_of(config)
    prepared = prepare(settings)
    weights = _weights(prepared, settings)
    name, rounds = str(config.get("run") or secrets.token_hex(16)), int(config.get("rounds", 100))
    steps, secure = int(config.get("local-steps", 1)), bool(config.get("secure-sum", False))
    batches = Batches(prepared, range(len(prepared.train.ids)), settings, 0, 1)
    known = _begun_with(config)
    planner = planner_of(settings, weights.blocks, prepared.scorer.loss, lambda: batches(0, 0)[0], known)
    run = run_settings(
        settings, len(weights.blocks), name, rounds, planner=planner, local_steps=steps, secure_sum=secure
    )
    policy = RoundPolicy(quorum=int(config.get("clients", 1)), deadline=float(config.get("deadline", 60)))
    return Plan(run, weights.base_digest, weights.blocks.layout, policy, weights)
