"""A digest tells any two models apart, and is of bits alone."""

from __future__ import annotations

import copy
import hashlib
import importlib
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import blockzo as bz
from blockzo.perturb.quantized_linear import QuantizedLinear


def by_hand(tensors: dict[str, Tensor]) -> str:
    """As docs/noise.md and the first version defined it, for plain tensors."""
    lines = sorted(
        f"{name} {str(t.dtype)[6:]} {'x'.join(map(str, t.shape))} "
        f"{hashlib.sha256(t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()}\n"
        for name, t in tensors.items()
    )
    return "bz1-" + hashlib.sha256("".join(lines).encode()).hexdigest()


class Plain(nn.Module):
    """Buffers of many kinds that are no weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        self.register_buffer("position_ids", torch.arange(5).unsqueeze(0))
        self.register_buffer("inv_freq", torch.rand(4))
        self.register_buffer("bias", torch.ones(1, 1, 4, 4, dtype=torch.uint8))
        self.register_buffer("masked_bias", torch.tensor(-1e4))


class Masks(nn.Module):
    """As old attention layers had them: no weight, and no quantised one either."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.register_buffer("bias", torch.ones(1, 1, 4, 4, dtype=torch.uint8))
        self.register_buffer("masked_bias", torch.tensor(-1e4))


@pytest.mark.parametrize("make", [Plain, Masks, lambda: nn.Sequential(nn.Linear(3, 2).bfloat16(), nn.LayerNorm(2))])
def test_plain_models_have_the_digest_that_journals_name(make: object) -> None:
    model = make()  # type: ignore[operator]
    assert bz.digest(model) == by_hand(dict(model.named_parameters()))


def quantised(bits: int, scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    linear = nn.Linear(8, 6)
    with torch.no_grad():
        linear.weight.mul_(scale)
    return nn.Sequential(QuantizedLinear.from_linear(linear, bits), nn.Linear(6, 2))


def test_quantised_bases_are_told_apart() -> None:
    eight, four, other = quantised(8), quantised(4), quantised(8, 2.0)
    for model in (four, other):
        model[1].load_state_dict(eight[1].state_dict())  # type: ignore[index]
    assert torch.equal(eight[0].data, other[0].data), "they differ in their scales alone"  # type: ignore[index]
    found = [bz.digest(eight), bz.digest(four), bz.digest(other)]
    assert len(set(found)) == 3 and found[0] == bz.digest(copy.deepcopy(eight))
    for name in ("data", "scale", "bias"):
        changed = copy.deepcopy(eight)
        getattr(changed[0], name).view(-1)[0] += 1  # type: ignore[index]
        assert bz.digest(changed) != found[0]
    # alike under the wrappers of other trainers
    assert bz.digest(nn.ModuleDict({"module": eight})) == found[0]


class State:
    """As bitsandbytes' QuantState speaks of itself; with statistics that are quantised too where `offset` is given."""

    def __init__(self, absmax: Tensor, offset: float | None = None, **settings: object) -> None:
        self.absmax, self.code, self.offset = absmax, torch.linspace(-1, 1, 16), offset
        self.settings: dict[str, object] = {
            "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": (8, 32), **settings
        }  # fmt: skip

    def as_dict(self, packed: bool = False) -> dict[str, object]:
        nested = {"nested_absmax": torch.ones(1), "nested_offset": self.offset} if self.offset is not None else {}
        return {**self.settings, "absmax": self.absmax, "quant_map": self.code, **nested}


class Hung(nn.Parameter):
    """A parameter with attributes that a copy keeps."""

    def __new__(cls, data: Tensor, **attributes: object) -> Hung:
        made = torch.Tensor._make_subclass(cls, data, False)
        made.__dict__.update(attributes)
        return made  # type: ignore[return-value]


def four_bits(**changed: object) -> nn.Module:
    values: dict[str, object] = {"absmax": torch.arange(1.0, 5.0), **changed}
    layer = nn.Linear(32, 8, bias=False)
    layer.weight = Hung(torch.arange(128, dtype=torch.uint8).view(-1, 1), quant_state=State(**values))  # type: ignore[arg-type]
    return nn.Sequential(layer)


def test_what_hangs_on_a_weight_of_four_bits_tells_two_apart() -> None:
    models = [
        four_bits(),
        four_bits(absmax=torch.tensor([1.0, 2.0, 3.0, 4.0000005])),
        four_bits(absmax=torch.arange(1.0, 5.0).bfloat16()),
        four_bits(quant_type="fp4"),
        four_bits(blocksize=128),
        four_bits(shape=(32, 8)),
        four_bits(offset=0.5),
        four_bits(offset=0.25),
    ]
    other = four_bits()
    other[0].weight.quant_state.code[3] += 0.125  # type: ignore[index]
    assert len({bz.digest(model) for model in (*models, other)}) == 9
    assert bz.digest(four_bits()) == bz.digest(models[0]) == bz.digest(nn.ModuleDict({"module": models[0]}))
    assert bz.digest(models[0]) == bz.digest(dict(models[0].named_parameters()))
    # where sharding took it from the weight, the layer still has it
    lost = four_bits()
    lost[0].quant_state, lost[0].weight.quant_state = lost[0].weight.quant_state, None  # type: ignore[index]
    assert bz.digest(lost) == bz.digest(models[0])
    models[0][0].weight.quant_state = [torch.ones(1)]  # type: ignore[index]
    with pytest.raises(ValueError, match=r"'0\.weight' has a quant_state of type list without as_dict"):
        bz.digest(models[0])


def test_scales_that_hang_on_a_weight_of_eight_bits_count_wherever_they_are() -> None:
    def eight(scale: float) -> nn.Module:
        layer = nn.Linear(4, 3)
        data = torch.arange(12, dtype=torch.int8).view(3, 4)
        layer.weight = Hung(data, SCB=torch.full((3,), scale), CB=data, has_fp16_weights=False)
        with torch.no_grad():
            layer.bias.fill_(1.0)
        return nn.Sequential(layer)

    one, other = eight(1.0), eight(2.0)
    found = bz.digest(one)
    assert found == bz.digest(eight(1.0)) != bz.digest(other)
    # as a first forward moves them
    one[0].state = SimpleNamespace(SCB=one[0].weight.SCB, CB=one[0].weight)  # type: ignore[index]
    one[0].weight.SCB = one[0].weight.CB = None  # type: ignore[index]
    assert bz.digest(one) == found


def test_attributes_of_weights_that_are_not_quantised_do_not_count() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    found = bz.digest(model)
    assert found == by_hand(dict(model.named_parameters()))
    model[0].weight.main_grad = torch.ones(3, 4)  # type: ignore[index]
    model[0].state = SimpleNamespace(SCB=torch.ones(3))
    model[0].quant_state = True  # type: ignore[assignment]
    assert bz.digest(model) == found


def test_tensors_without_bits_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match=r"'1\.weight' is on the device meta.*load"):
        bz.digest(model)
    with FakeTensorMode():
        fake = nn.Linear(2, 2)
    for tensor, message in (
        (fake.weight, "has no bits"),
        (torch.eye(3).to_sparse(), "to_dense"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "int_repr"),
    ):
        with pytest.raises(ValueError, match=f"'w' .*{message}"):
            bz.digest({"w": tensor})


def test_a_tensor_made_of_others_has_the_digest_of_what_it_holds() -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    model = nn.Linear(4, 3, bias=False)
    model.weight = nn.Parameter(TwoTensor(a, b), requires_grad=False)
    found = bz.digest(model)
    assert found == bz.digest(copy.deepcopy(model)) == bz.digest({"weight": TwoTensor(a.clone(), b.clone())})
    others = [TwoTensor(a, a), TwoTensor(b, a), TwoTensor(a, b + 1e-6), a, TwoTensor(a.double(), b.double())]
    assert len({found, *(bz.digest({"weight": t}) for t in others)}) == 6
    with pytest.raises(ValueError, match="no bits"):
        bz.digest({"weight": TwoTensor(a.to("meta"), b.to("meta"))})


def test_tensors_without_an_address_are_not_taken_for_one() -> None:
    a, b, c = (torch.randn(3, 4) for _ in range(3))
    pairs = [{"v": TwoTensor(a, b), "w": second} for second in (TwoTensor(a, b), TwoTensor(a, c))]
    assert bz.digest(pairs[0]) != bz.digest(pairs[1])
    with pytest.raises(ValueError, match="'v' is .* a TwoTensor; expected a strided tensor in memory of its own"):
        bz.perturb_(pairs[0], bz.Noise(1), 0.5)


def test_lazy_signs_are_bits() -> None:
    values = torch.randn(4, dtype=torch.complex64)
    assert bz.digest({"w": values.conj()}) == bz.digest({"w": values.conj().resolve_conj().clone()})
    assert bz.digest({"w": values.conj().imag}) == bz.digest({"w": -values.imag})


def test_threads_copy_on_the_stream_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for streams: which one is current is known to each thread alone, and is the default one in a new thread."""
    current, seen = threading.local(), []

    class On:
        def __init__(self, stream: str) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            self.before, current.stream = getattr(current, "stream", "default"), self.stream

        def __exit__(self, *_: object) -> None:
            current.stream = self.before

    # the package exports the function under that name
    digest = importlib.import_module("blockzo.ops.digest")
    plain = digest.tensor_hash

    def watched(tensor: Tensor) -> str:
        seen.append(getattr(current, "stream", "default"))
        return plain(tensor)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: getattr(current, "stream", "default"))
    monkeypatch.setattr(torch.cuda, "stream", On)
    monkeypatch.setattr(digest, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(digest, "tensor_hash", watched)
    with torch.cuda.stream("side"):  # type: ignore[arg-type]
        bz.digest(nn.Sequential(*(nn.Linear(2, 2) for _ in range(8))))
    assert seen == ["side"] * 16
