"""Networks of which only some layers are merged (layer-wise linear mode connectivity, Adilova et al. 2024).

Layer-wise barrier (Definition 2 there): of a network whose layers in a set S are (1 - t) fixed + t moving, and whose
other layers are all those of one end,

    B(S, t) = L(that network) - [L(fixed) + L(moving)] / 2,

minus the mean loss of the two whole networks, not of two networks with exchanged layers. There are two such numbers,
one for each end that the rest can come from. With all layers in S the network is the midpoint (t = 1/2) of the line,
whatever the end; with none of them it is that end.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lmc.curve.linear import on_line
from lmc.seeding import generator
from lmc.state import State, check_fits

End = Literal["fixed", "moving"]
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
ROOT = "(network)"
"""The name of the layer that the parameters of the network itself are (class tokens, positions)."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What is merged together.

    Attributes:
        name: of its first module.
        tensors: the names of its parameters and buffers in the state dict, further names of tied ones included.
    """

    name: str
    tensors: tuple[str, ...]


def layers_of(model: nn.Module, *, with_norm: bool = True) -> tuple[Layer, ...]:
    """Return the layers of `model` in the order in which its modules are registered.

    A layer is a module that has parameters of its own, with these and its buffers. A tensor under several names (tied
    weights, a module used twice) belongs to the layer of its first name, so that all its names move together. Buffers
    of a module without parameters belong to the layer before it. So every tensor of the state dict has one layer.

    Args:
        model: the architecture.
        with_norm: whether a normalisation layer (batch, layer, group or RMS norm) belongs to the layer registered
            before it, as its weights and statistics mean little without that layer; else it is one of its own.
    """
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    names: dict[int, list[str]] = {}
    for name, tensor in named:
        names.setdefault(id(tensor), []).append(name)
    kept = model.state_dict().keys()
    found: dict[str, list[str]] = {}
    orphans: list[str] = []
    for prefix, module in model.named_modules():
        parameters = _own(module._parameters, names)
        buffers = _own(module._buffers, names)
        if parameters and not (with_norm and found and isinstance(module, NORMS)):
            found[prefix or ROOT] = orphans
            orphans = []
        place = found[next(reversed(found))] if found else orphans
        place += [name for name in (*parameters, *buffers) if name in kept]
    return tuple(Layer(name=name, tensors=tuple(tensors)) for name, tensors in found.items())


def _own(tensors: Mapping[str, Tensor | None], names: dict[int, list[str]]) -> list[str]:
    """All names of the tensors of one module that no module before it has; they are struck off `names`."""
    found = []
    for tensor in tensors.values():
        if tensor is not None:
            found += names.pop(id(tensor), [])
    return found


def partly_merged(fixed: State, moving: State, tensors: Collection[str], t: float, rest: End) -> State:
    """Return the network whose `tensors` are on the line between two networks at `t`, and whose others are of one end.

    Bit for bit the point of the line if `tensors` are all, and the end if there are none.

    Args:
        fixed: the network at t = 0.
        moving: the network at t = 1.
        tensors: names of those that are merged.
        t: where.
        rest: the end that all others come from.

    Raises:
        UserError: the two are of different architectures.
    """
    check_fits(moving, fixed, "the moving network")
    whole = fixed if rest == "fixed" else moving
    merged = on_line({name: fixed[name] for name in tensors}, {name: moving[name] for name in tensors}, t)
    return {name: merged[name] if name in merged else tensor.detach().clone() for name, tensor in whole.items()}


def displaced(end: State, directions: Mapping[str, Tensor], distance: float) -> State:
    """Return the network `end` moved by `distance` times `directions`; a tensor without a direction stays.

    The control of `partly_merged`: as far away from the end that the rest comes from, but not towards the other one.

    Args:
        end: the network that all comes from.
        directions: name to a tensor of the same shape, see `random_directions`.
        distance: t if the rest comes from the fixed network, 1 - t if it comes from the moving one.
    """
    moved = {
        name: torch.add(end[name], direction.to(end[name].device), alpha=distance)
        for name, direction in directions.items()
    }
    return {name: moved[name] if name in moved else tensor.detach().clone() for name, tensor in end.items()}


def random_directions(
    model: nn.Module, fixed: State, moving: State, tensors: Collection[str], seed: int, number: int = 0
) -> State:
    """Return for each parameter of `tensors` a Gaussian tensor with the norm of the difference of both networks.

    On the CPU. Tied parameters have the same direction under all their names; buffers have none.

    Args:
        model: the architecture; tells parameters from buffers.
        fixed: one network.
        moving: the other one.
        tensors: the names that are wanted; others are left out.
        seed: of what is drawn; each tensor has numbers of its own, which depend on its name alone.
        number: of the direction: others are unrelated.
    """
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    found: State = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in set(tensors):
            draws = generator(seed, "layer_barrier", number, first[id(parameter)])
            noise = torch.randn(parameter.shape, generator=draws).double()
            apart = torch.dist(moving[name].double(), fixed[name].double()).item()
            found[name] = (noise * (apart / noise.norm())).to(fixed[name].dtype)
    return found


def shares(model: nn.Module, tensors: Collection[str], t: float, rest: End) -> tuple[float, float]:
    """Return the weights of the fixed and the moving network in a network of which only `tensors` are merged.

    Corrections of merged networks ask how much of each end there is. Where only some layers are merged that differs
    from layer to layer; taken is the mean over all parameters, which is (1 - t, t) if all layers are merged, and that
    of an end if none is.

    Args:
        model: the architecture.
        tensors: names of those that are merged.
        t: the weight of the moving network in these.
        rest: the end that all others come from.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    merged = sum(sizes[name] for name in sizes.keys() & set(tensors)) / sum(sizes.values())
    of_fixed, of_moving = merged * (1 - t), merged * t
    return (of_fixed + (1 - merged), of_moving) if rest == "fixed" else (of_fixed, of_moving + (1 - merged))


Mode = Literal["single", "bottom", "top", "window"]


def layer_sets(mode: Mode, layers: Sequence[Layer], window: int = 3) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and the numbers of every set of layers.

    Args:
        mode: "single": each layer alone. "bottom": the first layer, the first two, ..., all of them; named after the
            last one. "top": the last layer, the last two, ..., all; named after the first one. "window": `window`
            neighbouring layers, named after the first and the last.
        layers: in their order.
        window: how many layers a window has.
    """
    count = len(layers)
    everything = tuple(range(count))
    if mode == "single":
        yield from ((layer.name, (number,)) for number, layer in enumerate(layers))
    elif mode == "bottom":
        yield from ((layers[end].name, everything[: end + 1]) for end in everything)
    elif mode == "top":
        yield from ((layers[start].name, everything[start:]) for start in reversed(everything))
    else:
        for start in range(count - window + 1):
            chosen = everything[start : start + window]
            yield f"{layers[start].name}..{layers[chosen[-1]].name}", chosen
