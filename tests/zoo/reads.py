"""Ways of reading a weight: what torch and Python offer besides calling the module."""

from __future__ import annotations

import copy
import ctypes
import io
import threading
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

Loss = Callable[[nn.Module, Tensor], Tensor]
CLASSES = torch.tensor([0, 1, 2, 0, 1])


def rows() -> Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(4))


def entropy(out: Tensor) -> Tensor:
    return F.cross_entropy(out, CLASSES)


def plain(model: nn.Module, x: Tensor) -> Tensor:
    return entropy(model(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(torch.tanh(self.second(torch.relu(self.first(x))))))


def named(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def energy(gradients: object) -> Tensor:
    return sum(g.pow(2).sum() for g in (gradients.values() if isinstance(gradients, dict) else gradients))


def functional(m: nn.Module, x: Tensor) -> Tensor:
    return entropy(functional_call(m, named(m), x))


def vmap_over_rows(m: nn.Module, x: Tensor) -> Tensor:
    return entropy(torch.vmap(m)(x))


def vmap_over_stacked_weights(m: nn.Module, x: Tensor) -> Tensor:
    stacked = {name: torch.stack([p, 2 * p]) for name, p in named(m).items()}
    return torch.vmap(lambda weights: entropy(functional_call(m, weights, x)))(stacked).sum()


def stacked_state(m: nn.Module, x: Tensor) -> Tensor:
    weights, buffers = torch.func.stack_module_state([m, m])
    return torch.vmap(lambda w, b: entropy(functional_call(m, (w, b), x)))(weights, buffers).sum()


def vmap_over_a_weight(m: nn.Module, x: Tensor) -> Tensor:
    return plain(m, x) + torch.vmap(lambda row: row.pow(2).sum() * (row @ x[0]))(m.first.weight).sum()


def vmap_over_columns(m: nn.Module, x: Tensor) -> Tensor:
    return (
        plain(m, x)
        + torch.vmap(lambda w, b: (w * b).sin(), in_dims=(1, None), out_dims=1)(m.first.weight, m.first.bias).sum()
    )


def grad_of_weights(m: nn.Module, x: Tensor) -> Tensor:
    return energy(torch.func.grad(lambda weights: entropy(functional_call(m, weights, x)))(named(m)))


def grad_of_input(m: nn.Module, x: Tensor) -> Tensor:
    return plain(m, x) + torch.func.grad(lambda y: plain(m, y))(x).pow(2).sum()


def per_example_gradients(m: nn.Module, x: Tensor) -> Tensor:
    def one(weights: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(m, weights, row[None]), label[None])

    return energy(torch.vmap(torch.func.grad(one), in_dims=(None, 0, 0))(named(m), x, CLASSES))


def jvp_of_input(m: nn.Module, x: Tensor) -> Tensor:
    out, tangent = torch.func.jvp(m, (x,), (torch.ones_like(x),))
    return entropy(out) + tangent.pow(2).mean()


def jvp_of_weights(m: nn.Module, x: Tensor) -> Tensor:
    ones = tree_map(torch.ones_like, named(m))
    out, tangent = torch.func.jvp(lambda weights: functional_call(m, weights, x), (named(m),), (ones,))
    return entropy(out) + tangent.pow(2).mean()


def vjp_of_a_weight(m: nn.Module, x: Tensor) -> Tensor:
    _, pull = torch.func.vjp(lambda weight: entropy(F.linear(x, weight)), m.last.weight)
    return plain(m, x) + pull(torch.ones(()))[0].pow(2).sum()


def jacobian_backward(m: nn.Module, x: Tensor) -> Tensor:
    return plain(m, x) + torch.func.jacrev(lambda y: m(y[None])[0])(x[0]).pow(2).mean()


def jacobian_forward(m: nn.Module, x: Tensor) -> Tensor:
    return plain(m, x) + torch.func.jacfwd(lambda y: m(y[None])[0])(x[0]).pow(2).mean()


def hessian_of_a_bias(m: nn.Module, x: Tensor) -> Tensor:
    found = torch.func.hessian(lambda bias: entropy(F.linear(x, m.last.weight, bias)))(m.last.bias)
    return plain(m, x) + found.pow(2).sum()


def functionalized(m: nn.Module, x: Tensor) -> Tensor:
    return plain(m, x) + torch.func.functionalize(lambda w: w.t().contiguous().sum())(m.first.weight)


def autograd_of_input(m: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        loss = plain(m, x)
        return (loss + torch.autograd.grad(loss, x)[0].pow(2).sum()).detach()


def autograd_of_weights(m: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        return energy(torch.autograd.grad(plain(m, x), list(m.parameters()))).detach()


def forward_mode_autograd(m: nn.Module, x: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        out = m(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        value, tangent = torch.autograd.forward_ad.unpack_dual(out)
    return entropy(value) + tangent.pow(2).mean()


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.t()

    @staticmethod
    def backward(ctx: object, *grad: Tensor) -> None:
        return None


def own_autograd_function(m: nn.Module, x: Tensor) -> Tensor:
    return plain(m, x) + Product.apply(x, m.first.weight).tanh().sum()


def aten_operations(m: nn.Module, x: Tensor) -> Tensor:
    hidden = torch.ops.aten.linear(x, m.first.weight, m.first.bias)
    hidden = torch.ops.aten.addmm.default(m.second.bias, hidden, m.second.weight.t())
    return entropy(m.last(m.norm(hidden)))


def as_numpy(m: nn.Module, x: Tensor) -> Tensor:
    product = torch.from_numpy(x.numpy() @ m.first.weight.detach().numpy().T)
    return plain(m, x) + product.tanh().sum() + torch.tensor(m.second.weight.tolist()).sum()


def as_a_number(m: nn.Module, x: Tensor) -> Tensor:
    return plain(m, x) * (1 + m.first.weight.mean().item())


def deep_copy(m: nn.Module, x: Tensor) -> Tensor:
    return plain(copy.deepcopy(m), x)


def copied_parameters(m: nn.Module, x: Tensor) -> Tensor:
    return plain(m, x) + entropy(F.linear(x, copy.deepcopy(m.last.weight), copy.copy(m.last.bias)))


def state_dict(m: nn.Module, x: Tensor) -> Tensor:
    other = copy.deepcopy(m)
    other.load_state_dict({name: 2 * value for name, value in m.state_dict().items()})
    return plain(other, x)


def saved_and_loaded(m: nn.Module, x: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(m.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(m)
    other.load_state_dict(torch.load(file))
    return plain(other, x)


def one_vector(m: nn.Module, x: Tensor) -> Tensor:
    return plain(m, x) + nn.utils.parameters_to_vector(m.parameters()).pow(2).sum()


def foreach(m: nn.Module, x: Tensor) -> Tensor:
    return plain(m, x) + sum(torch._foreach_norm(list(m.parameters())))


def checkpointed(m: nn.Module, x: Tensor) -> Tensor:
    return entropy(checkpoint(m, x, use_reentrant=False))


def another_thread(m: nn.Module, x: Tensor) -> Tensor:
    found: list[Tensor] = []

    def go() -> None:
        with torch.no_grad():
            found.append(plain(m, x))

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    return found[0]


def one_layer_in_another_thread(m: nn.Module, x: Tensor) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(m.first(x).detach()))
    thread.start()
    thread.join()
    return entropy(m.last(m.norm(m.second(found[0]))))


def switched_off(m: nn.Module, x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        hidden = m.second(x)
    return plain(m, x) + hidden.tanh().sum()


def memory(m: nn.Module, x: Tensor) -> Tensor:
    return plain(m, x) + float(m.first.weight.untyped_storage()[0])


def pointer_kept(m: nn.Module, x: Tensor) -> Tensor:
    """By an address asked for before the step, as an extension does."""
    kept = (ctypes.c_float * 64).from_address(m.address)
    return plain(m, x) + torch.tensor(list(kept)).sin().sum()


def weights_by_weights(m: nn.Module, x: Tensor) -> Tensor:
    """As DoRA does."""
    product = F.linear(m.second.weight, m.first.weight[:4], m.first.bias[:4]).sin().mean()
    return entropy(F.linear(x, m.last.weight @ m.second.weight, m.last.bias)) + product


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.inner = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.Tanh()))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.first(x)))


class Traced(Scripted):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.jit.trace(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), torch.randn(2, 8))


class Addressed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.address = self.first.weight.data_ptr()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, 2, batch_first=True, bidirectional=True)
        self.cell, self.last = nn.GRUCell(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cell(self.lstm(x[:, None])[0][:, 0]))


class Attending(nn.Module):
    """torch has one fused function for a whole layer in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(torch.stack([x, x.flip(1), 2 * x], 1))
        return self.last(self.attention(hidden, hidden, hidden, need_weights=False)[0].mean(1))


class Parametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from torch.nn.utils import parametrizations, prune

        self.normed = parametrizations.weight_norm(nn.Linear(8, 8))
        self.spectral = parametrizations.spectral_norm(nn.Linear(8, 8))
        self.turned = parametrizations.orthogonal(nn.Linear(8, 8))
        with torch.no_grad():  # or it cannot be copied
            self.pruned = prune.random_unstructured(nn.Linear(8, 8), "weight", 0.5)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pruned(self.turned(self.spectral(self.normed(x)))))


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.conv, self.back = nn.EmbeddingBag(20, 8), nn.Conv1d(1, 4, 3), nn.ConvTranspose1d(4, 4, 3)
        self.slope, self.batch, self.group = nn.PReLU(4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4)
        self.pair, self.last = nn.Bilinear(4, 8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.group(self.batch(self.slope(self.back(self.conv(x[:, None])))) * x[:, None, :]).mean(-1)
        return self.last(self.pair(hidden, x) + self.bag((5 * x.abs()).long().clamp(max=19)))


class Queries(nn.Module):
    """Learned tokens as the input of layers, trained and frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(5, 8))
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.second.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.tokens) * self.second(self.tokens) + self.second(x))


class Ensemble(nn.Module):
    """Three models as one stacked parameter each, under `torch.vmap`."""

    def __init__(self) -> None:
        super().__init__()
        stacked, _ = torch.func.stack_module_state([Net() for _ in range(3)])
        self.weights = nn.ParameterDict({n.replace(".", "_"): nn.Parameter(p.detach()) for n, p in stacked.items()})
        self.skeleton = [Net().to("meta")]

    def forward(self, x: Tensor) -> Tensor:
        weights = {name.replace("_", "."): p for name, p in self.weights.items()}
        return torch.vmap(lambda one: functional_call(self.skeleton[0], one, x))(weights).mean(0)


RIGHT: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    **{
        loss.__name__: (Net, loss)
        for loss in (
            functional,
            vmap_over_rows,
            vmap_over_stacked_weights,
            stacked_state,
            vmap_over_a_weight,
            vmap_over_columns,
            grad_of_weights,
            grad_of_input,
            per_example_gradients,
            jvp_of_input,
            jvp_of_weights,
            vjp_of_a_weight,
            jacobian_backward,
            jacobian_forward,
            hessian_of_a_bias,
            autograd_of_input,
            autograd_of_weights,
            forward_mode_autograd,
            own_autograd_function,
            aten_operations,
            as_numpy,
            as_a_number,
            deep_copy,
            copied_parameters,
            state_dict,
            one_vector,
            foreach,
            checkpointed,
            weights_by_weights,
        )
    },
    **{
        kind.__name__.lower(): (kind, plain)
        for kind in (Recurrent, Attending, Parametrized, Convolved, Queries, Ensemble)
    },
}
"""Seen by a perturbed forward, and moved."""

REFUSED: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    **{
        loss.__name__: (Net, loss)
        for loss in (
            functionalized,
            saved_and_loaded,
            another_thread,
            one_layer_in_another_thread,
            switched_off,
            memory,
        )
    },
    "scripted": (Scripted, plain),
    "traced": (Traced, plain),
    "pointer_kept": (Addressed, pointer_kept),
}
"""Not seen, or seen and not to be followed: a sentence says so."""


def clamped(m: nn.Module, x: Tensor) -> Tensor:
    m.first.weight.data.clamp_(-0.1, 0.1)
    return plain(m, x)


def assigned(m: nn.Module, x: Tensor) -> Tensor:
    m.first.weight.data = m.first.weight.data / m.first.weight.data.norm()
    return plain(m, x)


def foreach_written(m: nn.Module, x: Tensor) -> Tensor:
    torch._foreach_mul_([p.data for p in m.parameters()], 0.5)
    return plain(m, x)


def made_anew(m: nn.Module, x: Tensor) -> Tensor:
    nn.init.constant_(m.first.bias, 0.5)
    return plain(m, x)


def rectified(m: nn.Module, x: Tensor) -> Tensor:
    return plain(m, x) + F.relu(m.first.weight.data, inplace=True).sum()


def loaded(m: nn.Module, x: Tensor) -> Tensor:
    """torch makes an error of its own of what writing it raises."""
    m.load_state_dict({name: 0.5 * value for name, value in m.state_dict().items()})
    return plain(m, x)


def shortened(m: nn.Module, x: Tensor) -> Tensor:
    return plain(m, x) + F.embedding(CLASSES, m.first.weight, max_norm=0.1).sum()


def shortened_bag(m: nn.Module, x: Tensor) -> Tensor:
    return plain(m, x) + F.embedding_bag(CLASSES[None], m.first.weight, max_norm=0.1).sum()


WRITES: dict[str, Loss] = {
    loss.__name__: loss
    for loss in (clamped, assigned, foreach_written, made_anew, rectified, loaded, shortened, shortened_bag)
}
"""Write a weight: refused, before any has been written."""
