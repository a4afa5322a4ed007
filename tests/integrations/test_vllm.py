"""The worker extension on a stand-in with vLLM's layouts: fused and sharded weights get the bits of the model that is neither."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from blockzo.integrations.vllm import WorkerExtension, named_parts

HIDDEN, HEAD, HEADS, WIDE, VOCABULARY, PADDED = 16, 4, 4, 24, 50, 64
Whole = dict[str, Tensor]


def whole_model(kv_heads: int, dtype: torch.dtype) -> Whole:
    """Under Hugging Face's names."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.layers.0.self_attn.q_proj.weight": (HEADS * HEAD, HIDDEN),
        "model.layers.0.self_attn.q_proj.bias": (HEADS * HEAD,),
        "model.layers.0.self_attn.k_proj.weight": (kv_heads * HEAD, HIDDEN),
        "model.layers.0.self_attn.k_proj.bias": (kv_heads * HEAD,),
        "model.layers.0.self_attn.v_proj.weight": (kv_heads * HEAD, HIDDEN),
        "model.layers.0.self_attn.v_proj.bias": (kv_heads * HEAD,),
        "model.layers.0.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
        "model.layers.0.mlp.gate_proj.weight": (WIDE, HIDDEN),
        "model.layers.0.mlp.up_proj.weight": (WIDE, HIDDEN),
        "model.layers.0.mlp.down_proj.weight": (HIDDEN, WIDE),
        "model.norm.weight": (HIDDEN,),
    }
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def layer(facts: dict[str, object], **weights: Tensor) -> nn.Module:
    module = nn.Module()
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight.clone(), requires_grad=False))
    for name, fact in facts.items():
        setattr(module, name, fact)
    return module


def worker(whole: Whole, kv_heads: int, rank: int = 0, ranks: int = 1) -> WorkerExtension:
    """One rank of vLLM's model of these weights: names and attributes as its layers have them."""

    def cut(name: str, dim: int, number: int = rank, slices: int = ranks) -> Tensor:
        return whole[name].chunk(slices, dim)[number] if slices > 1 else whole[name]

    tp = {"tp_rank": rank, "tp_size": ranks}
    held = max(1, kv_heads // ranks)
    replicas = max(1, ranks // kv_heads)
    attention, mlp = "model.layers.0.self_attn.", "model.layers.0.mlp."

    def qkv(kind: str) -> Tensor:
        kv = [cut(f"{attention}{p}_proj.{kind}", 0, rank // replicas, max(1, ranks // replicas)) for p in "kv"]
        return torch.cat([cut(f"{attention}q_proj.{kind}", 0), *kv])

    heads = {
        "total_num_heads": HEADS,
        "total_num_kv_heads": kv_heads,
        "num_heads": HEADS // ranks,
        "num_kv_heads": held,
    }
    sizes = [HEADS * HEAD, held * HEAD * ranks, held * HEAD * ranks]
    facts = {"head_size": HEAD, "v_head_size": HEAD, "num_kv_head_replicas": replicas, "output_sizes": sizes, **heads}
    column = {"input_size": HIDDEN, "input_size_per_partition": HIDDEN}
    fused = layer({**tp, **facts, **column, "output_size": sum(sizes)}, weight=qkv("weight"), bias=qkv("bias"))
    gates = torch.cat([cut(f"{mlp}gate_proj.weight", 0), cut(f"{mlp}up_proj.weight", 0)])
    gate_up = layer({**tp, **column, "output_sizes": [WIDE, WIDE], "output_size": 2 * WIDE}, weight=gates)

    def row(name: str, width: int) -> nn.Module:
        sizes = {"input_size": width, "input_size_per_partition": width // ranks, "output_size": HIDDEN}
        return layer({**tp, **sizes}, weight=cut(name, 1))

    table, first = torch.zeros(PADDED // ranks, HIDDEN, dtype=fused.weight.dtype), rank * (PADDED // ranks)
    last = min(VOCABULARY, first + len(table))
    table[: last - first] = whole["model.embed_tokens.weight"][first:last]
    indices = SimpleNamespace(org_vocab_start_index=first, org_vocab_end_index=last)
    model = nn.Module()
    inner = model.model = nn.Module()
    inner.embed_tokens = layer({"shard_indices": indices, "org_vocab_size": VOCABULARY}, weight=table)
    inner.layers = nn.ModuleList([nn.Module()])
    inner.layers[0].self_attn = nn.ModuleDict(
        {"qkv_proj": fused, "o_proj": row(f"{attention}o_proj.weight", HEADS * HEAD)}
    )
    inner.layers[0].mlp = nn.ModuleDict({"gate_up_proj": gate_up, "down_proj": row(f"{mlp}down_proj.weight", WIDE)})
    inner.norm = layer({}, weight=whole["model.norm.weight"])
    # the output layer shares its weight with the table
    model.lm_head = layer({"shard_indices": indices, "org_vocab_size": VOCABULARY})
    model.lm_head.weight = inner.embed_tokens.weight
    extension = WorkerExtension()
    extension.model_runner = SimpleNamespace(model=model)
    return extension


def held_by(extension: WorkerExtension) -> Whole:
    parts = named_parts(extension.model_runner.model)
    return {n: (p.tensor if isinstance(p, bz.Shard) else p).clone() for n, p in parts.items()}


def same(found: Whole, wanted: Whole) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in found)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fused_weights_get_the_bits_of_the_unfused_model(dtype: torch.dtype, distribution: str) -> None:
    whole = whole_model(2, dtype)
    extension = worker(whole, 2)
    assert extension.zo_digest() == bz.digest(whole)
    extension.zo_perturb(7, 0.1, distribution=distribution)
    moved = {name: tensor.clone() for name, tensor in whole.items()}
    bz.perturb_(moved, bz.Noise(7, distribution), 0.1)
    assert same(held_by(extension), moved)
    extension.zo_perturb(8, 0.1, distribution=distribution)  # from the weights, not from the member before
    extension.zo_restore()
    assert same(held_by(extension), whole)
    extension.zo_perturb(9, 0.1, distribution=distribution)
    extension.zo_update([7, 8, 9], [0.3, -0.1, 0.2], distribution=distribution, decay=0.01)
    bz.update_(whole, [bz.Noise(s, distribution) for s in (7, 8, 9)], [0.3, -0.1, 0.2], decay=0.01)
    assert same(held_by(extension), whole) and extension.zo_digest() == bz.digest(whole)
    extension.zo_perturb(10, 0.1)
    extension.zo_restore()
    assert same(held_by(extension), whole)


@pytest.mark.parametrize(("kv_heads", "ranks"), [(2, 2), (4, 2), (1, 2), (2, 4)])
def test_the_ranks_hold_parts_of_the_whole(kv_heads: int, ranks: int) -> None:
    """Heads of keys and values on one rank each, or on several where there are more ranks than heads."""
    whole = whole_model(kv_heads, torch.bfloat16)
    workers = [worker(whole, kv_heads, rank, ranks) for rank in range(ranks)]
    for one in workers:
        one.zo_perturb(3, 0.5)
        one.zo_update([4, 5], [0.5, -0.25])
    bz.update_(whole, [bz.Noise(4, "gaussian"), bz.Noise(5, "gaussian")], [0.5, -0.25])
    for rank, one in enumerate(workers):
        assert same(held_by(one), held_by(worker(whole, kv_heads, rank, ranks)))


def test_rows_that_pad_the_vocabulary_stay() -> None:
    extension = worker(whole_model(2, torch.float32), 2)
    extension.zo_perturb(3, 0.5)
    table = extension.model_runner.model.lm_head.weight
    assert bool((table[VOCABULARY:] == 0).all())


def test_weights_made_in_inference_mode_are_moved() -> None:
    whole = whole_model(2, torch.float32)
    with torch.inference_mode():
        extension = worker(whole, 2)
    extension.zo_perturb(3, 0.5)
    extension.zo_restore()
    assert same(held_by(extension), whole)


def test_no_name_is_one_of_a_worker() -> None:
    """vLLM refuses an extension that has a name of its worker."""
    own = [name for name in dir(WorkerExtension) if not name.startswith("__")]
    assert own and all(name.startswith(("zo_", "_zo_")) for name in own)


def test_a_fused_layer_of_unknown_parts_is_refused() -> None:
    extension = worker(whole_model(2, torch.float32), 2)
    extension.model_runner.model.packed_modules_mapping = {"qkv_proj": ["qkv_proj"]}
    with pytest.raises(ValueError, match=r"qkv_proj.weight has 32 rows and the names \['qkv_proj'\]"):
        extension.zo_perturb(1, 0.1)
