"""Perturbed and updated inside vLLM's workers: evolution strategies whose members are evaluated by generation.

    llm = LLM(model, worker_extension_cls="blockzo.integrations.vllm.WorkerExtension")
    llm.collective_rpc("zo_perturb", args=(seed, sigma))         a member; llm.generate(...) then samples from it
    llm.collective_rpc("zo_update", args=(seeds, coefficients))  weights as they were before, moved along all members at once

Needs nothing of vLLM itself: it looks at the attributes that vLLM's layers have. After either call drop cached prefixes
(`llm.reset_prefix_cache()`): they are of other weights. Tested on a stand-in with vLLM's layouts, not on vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blockzo import ops
from blockzo.noise import Noise
from blockzo.ops.shards import Shard

QKV = ("q_proj", "k_proj", "v_proj")
PACKED = {"qkv_proj": QKV, "gate_up_proj": ("gate_proj", "up_proj")}
"""Of a model without `packed_modules_mapping`."""


class WorkerExtension:
    """Methods for `collective_rpc`; every worker holds its part of the weights and gives it the bits it has in the whole model.

    The weights that the last update left are kept once more, in host memory, from the first `zo_perturb` on: a restore is a copy
    and so exact, which adding and subtracting the same noise is not.
    """

    model_runner: Any

    def zo_perturb(self, seed: int, scale: float, direction: int = 0, distribution: str = "gaussian") -> None:
        """The weights become w + scale * z; w is that of the last update, whatever was perturbed since."""
        self.zo_restore()
        self._zo_keep()
        ops.perturb_(self._zo_params(), Noise(seed, distribution), scale, direction)
        self._zo_moved = True

    def zo_restore(self) -> None:
        """Back to the weights of the last update, to the bit."""
        if getattr(self, "_zo_moved", False):
            self._zo_copy(from_host=True)
            self._zo_moved = False

    def zo_update(
        self,
        seeds: Sequence[int],
        coefficients: Sequence[float],
        directions: Sequence[int] | None = None,
        distribution: str = "gaussian",
        decay: float = 0.0,
    ) -> None:
        """w <- w * (1 - decay) - sum of coefficient * z of all seeds, in one pass, rounded once (`blockzo.update_`).

        Evolution strategies go up: give -rate / (members * sigma) * (reward - mean) / deviation.
        """
        self.zo_restore()
        noises = [Noise(seed, distribution) for seed in seeds]
        ops.update_(self._zo_params(), noises, coefficients, directions, decay)
        self._zo_current = False

    def zo_digest(self) -> str:
        """Of this worker's weights; of the whole model where it holds all of it (`blockzo.digest` under Hugging Face's names)."""
        parts = {n: p.tensor if isinstance(p, Shard) else p for n, p in self._zo_params().items()}
        return ops.digest(parts)

    def _zo_params(self) -> dict[str, Tensor | Shard]:
        found: dict[str, Tensor | Shard] | None = getattr(self, "_zo_named", None)
        if found is None:
            found = self._zo_named = named_parts(self.model_runner.model)
        return found

    def _zo_keep(self) -> None:
        """The copy on the host is made when the weights first move, and again after an update."""
        if not getattr(self, "_zo_current", False):
            self._zo_copy(from_host=False)
            self._zo_current = True

    def _zo_copy(self, from_host: bool) -> None:
        tensors = [p.tensor if isinstance(p, Shard) else p for p in self._zo_params().values()]
        kept: list[Tensor] | None = getattr(self, "_zo_kept", None)
        if kept is None:
            kept = self._zo_kept = [torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for t in tensors]
        # vLLM's weights may be inference tensors, which are written in this mode alone
        with torch.inference_mode():
            for tensor, copy in zip(tensors, kept, strict=True):
                (tensor if from_host else copy).copy_(copy if from_host else tensor)


def named_parts(model: nn.Module) -> dict[str, Tensor | Shard]:
    """The weights of a vLLM model under the names of the unfused one: fused layers as views of their parts, a rank's part of a
    tensor as a `Shard` of the whole. A weight that two layers share has the name of the first.

    Raises:
        ValueError: the parts of a fused layer do not add up to its weight (a quantised one, say).
    """
    packed = {**PACKED, **(getattr(model, "packed_modules_mapping", None) or {})}
    found: dict[str, Tensor | Shard] = {}
    seen: set[int] = set()
    for place, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found |= _parts_of(place, kind, module, parameter.detach(), packed)
    return found


def _parts_of(
    place: str, kind: str, module: Any, tensor: Tensor, packed: Mapping[str, Sequence[str]]
) -> dict[str, Tensor | Shard]:
    above, _, name = place.rpartition(".")
    if hasattr(module, "shard_indices"):
        return {f"{place}.{kind}": _rows_of_vocabulary(module, tensor)}
    parts = list(_fused(module))
    if len(parts) > 1:
        names = packed.get(name, ())
        if len(names) != len(parts) or sum(rows for rows, _, _ in parts) != tensor.shape[0]:
            raise ValueError(
                f"{place}.{kind} has {tensor.shape[0]} rows and the names {list(names)}; expected the parts "
                f"{[rows for rows, _, _ in parts]}, a name for each (packed_modules_mapping)"
            )
        result: dict[str, Tensor | Shard] = {}
        at = 0
        for each, (rows, whole, number) in zip(names, parts, strict=True):
            view = tensor.narrow(0, at, rows)
            result[f"{above}.{each}.{kind}" if above else f"{each}.{kind}"] = _slice(view, 0, whole, number)
            at += rows
        return result
    rank = int(getattr(module, "tp_rank", 0))
    full = f"{place}.{kind}" if place else kind
    if getattr(module, "input_size_per_partition", None) is None:
        return {full: tensor}
    rows, columns = module.output_size, module.input_size
    if tensor.dim() == 2 and tensor.shape[1] < columns:
        return {full: _slice(tensor, 1, columns, rank)}
    return {full: _slice(tensor, 0, rows, rank)}


def _fused(module: Any) -> Iterator[tuple[int, int, int]]:
    """Rows here, rows in the whole, and number of the slice, of each part of a fused layer; nothing of another one."""
    rank, ranks = int(getattr(module, "tp_rank", 0)), int(getattr(module, "tp_size", 1))
    if hasattr(module, "total_num_kv_heads"):
        head, heads, kv = module.head_size, module.num_heads, module.num_kv_heads
        value = getattr(module, "v_head_size", head)
        # where there are more ranks than key heads, several ranks hold the same one
        number = rank // module.num_kv_head_replicas
        yield heads * head, module.total_num_heads * head, rank
        yield kv * head, module.total_num_kv_heads * head, number
        yield kv * value, module.total_num_kv_heads * value, number
    elif len(getattr(module, "output_sizes", ())) > 1:
        for size in module.output_sizes:
            yield size // ranks, size, rank


def _rows_of_vocabulary(module: Any, tensor: Tensor) -> Tensor | Shard:
    """Without the rows that pad it, which no token has."""
    held = module.shard_indices
    first, rows = held.org_vocab_start_index, held.org_vocab_end_index - held.org_vocab_start_index
    view = tensor[:rows]
    if rows == module.org_vocab_size:
        return view
    return Shard.at(view, (module.org_vocab_size, *tensor.shape[1:]), (first, *[0] * (tensor.dim() - 1)))


def _slice(view: Tensor, dim: int, size: int, number: int) -> Tensor | Shard:
    """Slice `number` of a tensor that has `size` in dimension `dim`."""
    if view.shape[dim] == size:
        return view
    shape, offsets = list(view.shape), [0] * view.dim()
    shape[dim], offsets[dim] = size, number * view.shape[dim]
    return Shard.at(view, shape, offsets)
