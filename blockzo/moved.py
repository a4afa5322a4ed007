"""Modules of blockzo 0.1.0 that have another name now: they are found under the old one too, with a DeprecationWarning.

To be removed with 0.3.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

HOMES = {
    "outside": "journal.outside",
    "files": "journal.files",
    "journal_format": "journal.format",
    "journal_reader": "journal.reader",
    "record": "journal.record",
    "operations": "ops.catalogue",
    "ops.registered": "ops.library",
    "ops.registered_packed": "ops.library_packed",
    "ops.reference": "ops.backends.reference",
    "ops.native": "ops.backends.cpu",
    "ops.gpu": "ops.backends.gpu.kernels",
    "ops.cuda": "ops.backends.gpu.cuda",
    "ops.gpu_products": "ops.backends.gpu.products",
    "ops.gpu_runs": "ops.backends.gpu.runs",
    "ops.gpu_tables": "ops.backends.gpu.tables",
    "ops.linear_choice": "ops.backends.gpu.linear_choice",
    "quantized": "perturb.quantized_linear",
    "blocks": "perturb.blocks",
    "groups": "perturb.groups perturb.grouping perturb.activations",
    "flops": "perturb.flops",
    "passes": "perturb.passes",
    "tree": "methods.tree",
    "shares": "methods.shares",
    "estimators": "methods.base methods.levels methods.decoupled methods.whole methods.fzoo methods.spzo optim.cutting",
    "planner": "methods.planner methods.auto methods.block_state methods.guard optim.cutting",
    "evaluate": "optim.executor optim.in_place optim.evaluation perturb.losses optim.reuse",
    "costs": "optim.costs",
    "reuse": "optim.reuse",
    "micro_batches": "optim.micro_batches",
    "repeatable": "optim.repeatable",
    "graphed": "optim.graphed",
    "distributed": "optim.distributed",
    "ranks": "optim.ranks",
    "schedules": "optim.schedules",
    "finetune.tasks": "finetune.data.tasks finetune.data.task finetune.data.templates",
    "finetune.rows": "finetune.data.rows",
    "finetune.order": "finetune.data.order",
    "finetune.prompts": "finetune.data.prompts",
    "finetune.plain_text": "finetune.data.plain_text",
    "finetune.checkpoint": "finetune.models.checkpoint finetune.models.judge finetune.models.weight_names",
    "finetune.weight_files": "finetune.models.weight_files",
    "finetune.packages": "finetune.models.packages finetune.models.built_in",
    "finetune.heads": "finetune.models.heads",
    "finetune.identity": "finetune.models.identity",
    "environment": "cli.environment",
    "selftest": "cli.selftest",
    "federated.settings": "federated.protocol.settings federated.protocol.aggregates",
    "federated.addresses": "federated.protocol.addresses",
    "federated.seeds": "federated.protocol.seeds",
    "federated.records": "federated.protocol.records",
    "federated.messages": "federated.protocol.messages journal.outside",
    "federated.sum_messages": "federated.protocol.sum_messages",
    "federated.digests": "federated.protocol.digests",
    "federated.round_record": "federated.protocol.round_record",
    "federated.combine": "federated.protocol.combine",
    "federated.estimate": "federated.protocol.estimate",
    "federated.pool": "federated.protocol.direction_pool",
    "federated.snapshots": "federated.protocol.snapshots",
    "federated.open_round": "federated.server.open_round",
    "federated.history": "federated.server.history",
    "federated.preconditions": "federated.server.preconditions",
    "federated.right_weights": "federated.server.right_weights",
    "federated.worker": "federated.client.worker",
    "federated.weights": "federated.client.weights",
    "federated.policy": "federated.client.policy",
    "federated.per_example": "federated.client.per_example",
    "federated.releases": "federated.privacy.releases",
    "federated.partition": "federated.client.partition",
    "federated.discrete_gaussian": "federated.privacy.discrete_gaussian",
    "federated.noise_shares": "federated.privacy.noise_shares federated.privacy.accounting",
    "federated.secure_sum": "federated.secagg.sum_client",
    "federated.secure_sum_server": "federated.secagg.sum_server",
    "federated.secure_client": "federated.secagg.client",
    "federated.secure_round": "federated.secagg.round",
    "federated.secure_values": "federated.secagg.values",
    "federated.sum_crypto": "federated.secagg.crypto",
    "federated.shamir": "federated.secagg.shamir",
    "federated.fixed_point": "federated.secagg.fixed_point",
    "federated.local": "simulate.local",
}
"""Old module -> the modules that hold what was in it."""


class _Moved(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for home in _homes(self.__name__):
                module = import_module(home)
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} (it is now {_told(self.__name__)})")


class _Finder(MetaPathFinder, Loader):
    """Asked last, so that it costs nothing where a module is there."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, module = name.partition(".")
        return ModuleSpec(name, self) if package == "blockzo" and module in HOMES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is now {_told(spec.name)}", DeprecationWarning, stacklevel=2)
        return _Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _homes(name: str) -> list[str]:
    return [f"blockzo.{home}" for home in HOMES[name.partition(".")[2]].split()]


def _told(name: str) -> str:
    return ", ".join(_homes(name))


def find_moved() -> None:
    """Old names are found from now on."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
