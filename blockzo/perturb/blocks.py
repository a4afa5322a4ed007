"""Cutting a model into consecutive blocks; `passes.py` runs some of them on activations that earlier blocks left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blockzo.noise import canonical_name
from blockzo.ops.params import Target, named_tensors
from blockzo.perturb.kinds import Kind, kind_of
from blockzo.perturb.left import Left
from blockzo.perturb.passes import Kept, Path, Run, no_drift
from blockzo.perturb.unknown import Unknown


class Blocks:
    """A model as consecutive blocks of layers.

    Args:
        model: a Hugging Face encoder or decoder, an `nn.Sequential`, or any module with one list of layers that run in order.
        boundaries: layer numbers (int) or fractions of the layers (float) at which a new block begins; "auto" cuts in half;
            "head" (or the number of layers) makes a block of what runs after the layers; an empty list makes one block.
        layers: the list of layers, where it cannot be found by itself: a dotted name, an `nn.ModuleList` or `nn.Sequential`.
        example: keyword arguments of one forward, used once to see which parameters run before the layers and which after.
            Hugging Face models bring their own.

    Embeddings belong to the first block and the head to the last; a tied parameter to the block that uses it first.
    Attributes: `layers`, `starts` (first layer of each block), `layout` (canonical name of every trainable parameter -> block),
    `places` (the same for every parameter).

    Raises:
        ValueError: no single list of layers was found, or the boundaries do not fit it.
    """

    def __init__(
        self,
        model: nn.Module,
        boundaries: str | float | Sequence[float | str] = "auto",
        layers: str | nn.ModuleList | nn.Sequential | None = None,
        example: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        needs_layers = not (isinstance(boundaries, (list, tuple)) and not boundaries)
        self.layers = _find_layers(model, layers) if needs_layers or layers is not None else []
        self.starts = [0, *_layer_numbers(boundaries, len(self.layers))]
        self._configs = _configs_with_cache(model)
        self.calls: dict[int, int] = {}
        """Block -> how often the loss calls the layer before it, as last seen; the forward is left after that call."""
        self.leaves = True
        """Whether it may be left there: some code changes the model for a call and back after it (`standing.py`)."""
        every = named_tensors(model, trainable_only=False)
        self.places = self._assign(every, example) if len(self.starts) > 1 else dict.fromkeys(every, 0)
        self.layout = {name: self.places[name] for name in named_tensors(model)}

    def __len__(self) -> int:
        return len(self.starts)

    def __repr__(self) -> str:
        ends = [*self.starts[1:], len(self.layers)]
        parts = ", ".join(f"{start}-{end - 1}" for start, end in zip(self.starts, ends, strict=True))
        return f"Blocks({type(self.model).__name__}, layers {parts})"

    def parameters(self, block: int) -> dict[str, Tensor]:
        """Trainable parameters of one block under their canonical names."""
        return {n: t for n, t in named_tensors(self.model).items() if self.layout[n] == block}

    def members(self, found: Sequence[Target]) -> list[list[Target]]:
        """Those of each block.

        Raises:
            ValueError: one of them was frozen when the model was cut, or not there.
        """
        result: list[list[Target]] = [[] for _ in range(len(self))]
        for target in found:
            block = self.layout.get(target.name)
            if block is None:
                raise ValueError(
                    f"parameter {target.name!r} was frozen, or of another name, or not there when the model was cut into blocks; "
                    "freeze it, or make a new bz.ZO (and Blocks, where you pass them) of the model as it is now"
                )
            result[block].append(target)
        return result

    def run(
        self,
        forward: Callable[[], Any],
        first: int,
        stop: int,
        kept: Kept | None = None,
        beyond: Callable[[], None] | None = None,
        left: Left | None = None,
        unknown: Unknown | None = None,
    ) -> Any:
        """Runs blocks first .. stop-1.

        Args:
            forward: calls the model on the batch (and computes the loss); it may call the layers any number of times.
            kept: what the run that stopped before block `first` returned; it is not changed.
            beyond: called when code after block stop-1 begins to run on activations that are not the model's.
            left: is told when a layer of these blocks begins.
            unknown: is told what bypassed layers hand on that was not kept.

        Returns:
            Activations after block stop-1, or what `forward` returns where that is the last block.

        Raises:
            PathChanged: `forward` does not call the layers as it did when activations were kept.
            ValueError: it does not call the last layer of block stop-1.
        """
        if stop == len(self):
            return self.run_to_loss(forward, first, kept, unknown)[0]
        begin, end = self.starts[first], self.starts[stop]
        calls = self.calls.get(stop) if self.leaves else None
        run = Run(self.model, self.layers, begin, end, kept, calls, beyond, left, unknown)
        with self._without_cache():
            found = run.to_end(forward)
        self.calls.setdefault(stop, len(found.outputs))
        return found

    def run_whole(self, forward: Callable[[], Any]) -> Any:
        """What `forward` returns, with nothing kept or looked at."""
        with self._without_cache():
            return forward()

    def run_to_loss(
        self, forward: Callable[[], Any], first: int = 0, kept: Kept | None = None, unknown: Unknown | None = None
    ) -> tuple[Any, Tensor, Path]:
        """What `forward` returns, run from block `first` on, with its drift (`Kept`) and the way it went."""
        if len(self) == 1:
            return self.run_whole(forward), no_drift(), frozenset()
        run = Run(self.model, self.layers, self.starts[first], None, kept, unknown=unknown)
        with self._without_cache():
            value, drift = run.to_loss(forward)
        if first == 0:
            self.calls = {block: run.counts[self.starts[block] - 1] for block in range(1, len(self))}
        return value, drift, run.path

    @contextmanager
    def _without_cache(self) -> Iterator[None]:
        before = [(config, config.use_cache) for config in self._configs]
        try:
            for config in self._configs:
                config.use_cache = False
            yield
        finally:
            for config, value in before:
                config.use_cache = value

    def _assign(self, every: Mapping[str, Tensor], example: Mapping[str, Any] | None) -> dict[str, int]:
        order = _first_use(self.model, self.layers, example, self._without_cache)
        inside: dict[int, int] = {}
        for index, layer in enumerate(self.layers):
            for parameter in layer.parameters():
                inside.setdefault(id(parameter), index)
        result = {}
        for name, tensor in every.items():
            number = order.get(id(tensor), inside.get(id(tensor)))
            if number is None:
                number = 0 if _looks_like_embedding(self.model, name) else len(self.layers)
            result[name] = self._block_of(number)
        return result

    def _block_of(self, layer: int) -> int:
        return max(block for block, start in enumerate(self.starts) if start <= layer)


def _find_layers(model: nn.Module, given: str | nn.ModuleList | nn.Sequential | None) -> list[nn.Module]:
    if given is not None:
        names = dict(model.named_modules())
        found = names.get(given) if isinstance(given, str) else given
        if not isinstance(found, (nn.ModuleList, nn.Sequential)):
            lists = [n for n, m in names.items() if isinstance(m, (nn.ModuleList, nn.Sequential))]
            raise ValueError(f"layers is {given!r}; expected the name of a list of layers, one of {lists}")
        return list(found)
    if isinstance(model, nn.Sequential):
        return list(model)
    sizes: dict[str, tuple[int, list[nn.Module]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1 and _alike(list(module)):
            if not any(name.startswith(f"{outer}.") for outer in sizes):
                sizes[name] = (sum(p.numel() for p in module.parameters()), list(module))
    ranked = sorted(sizes, key=lambda name: -sizes[name][0])
    if not ranked:
        raise ValueError(
            f"{type(model).__name__} has no list of two or more equal layers; pass layers=<name of an nn.ModuleList or "
            "nn.Sequential>, or boundaries=[] to keep the model in one block"
        )
    if len(ranked) > 1 and sizes[ranked[1]][0] > 0.5 * sizes[ranked[0]][0]:
        raise ValueError(
            f"{type(model).__name__} has more than one list of layers ({', '.join(map(repr, ranked))}); pass layers=<one of them>"
        )
    return sizes[ranked[0]][1]


def _alike(layers: list[nn.Module]) -> bool:
    """Layers with weights, of one kind or of few that recur (hybrids of attention and state-space layers)."""
    weighted = all(any(True for _ in layer.parameters()) for layer in layers)
    return weighted and 2 * len({type(layer) for layer in layers}) <= len(layers)


def _layer_numbers(boundaries: str | float | Sequence[float | str], count: int) -> list[int]:
    if boundaries == "auto":
        boundaries = [0.5]
    if isinstance(boundaries, (int, float, str)):
        boundaries = [boundaries]
    numbers = []
    for boundary in boundaries:
        if boundary == "head":
            boundary = count
        if isinstance(boundary, str):
            raise ValueError(f'boundary {boundary!r} is not known; expected "auto", "head", layer numbers or fractions')
        whole = isinstance(boundary, int) and not isinstance(boundary, bool)
        number = int(boundary) if whole else max(1, min(count - 1, round(boundary * count)))
        if not 1 <= number < count + whole or (not whole and not 0.0 < boundary < 1.0):
            raise ValueError(
                f"boundary {boundary!r} does not fit a model of {count} layers; expected layer numbers in [1, {count}] "
                "or fractions between 0 and 1"
            )
        numbers.append(number)
    if numbers != sorted(set(numbers)):
        raise ValueError(
            f"boundaries {list(boundaries)} cut before layers {numbers}; expected strictly increasing layers"
        )
    return numbers


def _configs_with_cache(model: nn.Module) -> list[Any]:
    found = {id(m.config): m.config for m in model.modules() if hasattr(getattr(m, "config", None), "use_cache")}
    return list(found.values())


def _looks_like_embedding(model: nn.Module, name: str) -> bool:
    owner = name.rpartition(".")[0]
    modules = {canonical_name(n): m for n, m in model.named_modules()}
    return isinstance(modules.get(owner), nn.Embedding) or "embed" in name.lower()


class _UseOrder(TorchFunctionMode):
    """Notes, for each parameter, how many layers had begun when it was first used."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self.seen: dict[int, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # a weight that a model rescales first is used where it is multiplied
        if kind_of(func) not in (Kind.FACT, Kind.WRITES):
            for value in (*args, *(kwargs or {}).values()):
                if isinstance(value, nn.Parameter):
                    self.seen.setdefault(id(value), max(0, self.begun - 1))
        return func(*args, **(kwargs or {}))


def _first_use(
    model: nn.Module, layers: list[nn.Module], example: Mapping[str, Any] | None, without_cache: Callable[[], Any]
) -> dict[int, int]:
    """Parameter id -> layer it is first used in (before the layers: 0; after them: their number), from one small forward.

    Empty where no example input is known; where the model's own example does not fit it, likewise.
    """
    own = None
    if example is None:
        own = getattr(model, "dummy_inputs", None)
        if not isinstance(own, Mapping):
            return {}
    order = _UseOrder()
    # a module may stand in the list twice, or be called twice
    places: dict[int, list[int]] = {}
    for number, layer in enumerate(layers):
        places.setdefault(id(layer), []).append(number)
    calls = dict.fromkeys(places, 0)

    def begin(module: nn.Module, args: Any) -> None:
        turn = calls[id(module)]
        calls[id(module)] = turn + 1
        order.begun = places[id(module)][turn % len(places[id(module)])] + 1

    def end(module: nn.Module, args: Any, output: Any) -> None:
        if order.begun == len(layers):
            order.begun = len(layers) + 1

    handles = [layer.register_forward_pre_hook(begin) for layer in {id(layer): layer for layer in layers}.values()]
    handles += [layers[-1].register_forward_hook(end)] if layers else []
    training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in (example or own or {}).items()}
    try:
        model.eval()
        with torch.no_grad(), without_cache(), order:
            model(**inputs)
    except Exception:
        if example is not None:
            raise
        return {}
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return order.seen
