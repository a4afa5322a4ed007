"""Cutting a model into consecutive blocks, and running some of them on activations that earlier blocks left.

The model's own forward always runs. Layers before the first wanted block are bypassed: each returns the kept output of the
layer just before that block, so whatever the model does around its layers (masks, rotary tables, position biases, tuples or
tensors) is its own code on its own arguments. After the last wanted block the forward is stopped by an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from blockzo.noise import canonical_name
from blockzo.ops.params import named_tensors
from blockzo.perturb import is_fact


class _Stop(Exception):
    """Carries the output of the last layer that was wanted through the model's forward."""

    def __init__(self, output: Any) -> None:
        super().__init__("block finished")
        self.output = output


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
        self.layers_name, self.layers = _find_layers(model, layers) if needs_layers or layers is not None else ("", [])
        self.starts = [0, *_layer_numbers(boundaries, len(self.layers))]
        self._configs = _configs_with_cache(model)
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

    def run(self, forward: Callable[[], Any], first: int, stop: int, kept: Any = None) -> Any:
        """Runs blocks first .. stop-1.

        Args:
            forward: calls the model on the batch (and computes the loss).
            kept: what the run that stopped before block `first` returned; it is not changed.

        Returns:
            The activations after block stop-1, or what `forward` returns where that is the last block.
        """
        last = stop == len(self)
        with self._without_cache(), self._bypassed(self.starts[first], kept):
            if last:
                return forward()
            with self._stopped(self.starts[stop] - 1):
                try:
                    forward()
                except _Stop as reached:
                    return reached.output
        raise ValueError(
            f"the model's forward ended without running layer {self.starts[stop] - 1} of {self.layers_name!r}; "
            "blocks need a model that runs its layers once each, in order (pass layers= to name another list)"
        )

    @contextmanager
    def _bypassed(self, count: int, kept: Any) -> Iterator[None]:
        def skip(*args: Any, **kwargs: Any) -> Any:
            return kept

        def leave(*args: Any, **kwargs: Any) -> Any:
            # a copy, so that a layer which works in place cannot change what other runs still need
            return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, kept)

        before = [(layer, layer.__dict__.get("forward")) for layer in self.layers[:count]]
        try:
            for layer, _ in before:
                layer.__dict__["forward"] = skip
            if before:
                before[-1][0].__dict__["forward"] = leave
            yield
        finally:
            for layer, own in before:
                if own is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.__dict__["forward"] = own

    @contextmanager
    def _stopped(self, layer: int) -> Iterator[None]:
        def stop(module: nn.Module, args: Any, output: Any) -> None:
            raise _Stop(output)

        handle = self.layers[layer].register_forward_hook(stop)
        try:
            yield
        finally:
            handle.remove()

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


def _find_layers(model: nn.Module, given: str | nn.ModuleList | nn.Sequential | None) -> tuple[str, list[nn.Module]]:
    if given is not None:
        names = dict(model.named_modules())
        found = names.get(given) if isinstance(given, str) else given
        if not isinstance(found, (nn.ModuleList, nn.Sequential)):
            lists = [n for n, m in names.items() if isinstance(m, (nn.ModuleList, nn.Sequential))]
            raise ValueError(f"layers is {given!r}; expected the name of a list of layers, one of {lists}")
        return next((n for n, m in names.items() if m is found), "layers"), list(found)
    if isinstance(model, nn.Sequential):
        return "", list(model)
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
    return ranked[0], sizes[ranked[0]][1]


def _alike(layers: list[nn.Module]) -> bool:
    return len({type(layer) for layer in layers}) == 1 and any(True for _ in layers[0].parameters())


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
        if not is_fact(func):
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
    begun = 0

    def begin(module: nn.Module, args: Any) -> None:
        nonlocal begun
        begun += 1
        order.begun = begun

    def end(module: nn.Module, args: Any, output: Any) -> None:
        if begun == len(layers):
            order.begun = len(layers) + 1

    handles = [layer.register_forward_pre_hook(begin) for layer in layers]
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
