"""Which layers of two networks can be compared, and where the samples of an image lie in them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmc.dataset.images import Dataset
from lmc.evaluation.along_curve import observable
from lmc.seeding import generator
from lmc.state import State, to_device
from lmc.symmetry.activations import Probe
from lmc.symmetry.structure import Symmetry

_CHANGED = 1e-3


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Units that are seen together: a value of the network, behind a nonlinearity.

    Attributes:
        name: of the last group that is seen there, with the place if that does not say which layer it is.
        place: the name of the value in the traced graph.
        groups: the groups of units that are seen in it.
        units: how many units they are.
        positions: samples of one image: positions of the feature map, tokens.
        repeated: how many times the images come one after the other among the samples; 1 where all samples of an image
            are together.
    """

    name: str
    place: str
    groups: tuple[str, ...]
    units: int
    positions: int
    repeated: int


def layers_of(model: nn.Module, symmetry: Symmetry, network: State, dataset: Dataset) -> list[Layer]:
    """Return the layers whose units are compared, in the order of the network.

    A value of the network behind a nonlinearity is a layer, with the units of all groups that are seen in it (the
    channels of a dense connection). Units that are seen with other numbers of samples than the others (packed queries,
    keys and values) are a layer of their own.

    Args:
        model: the architecture; never changed.
        symmetry: of the architecture.
        network: tensors of the architecture.
        dataset: gives the shape and the device of the images.

    Raises:
        UserError: no unit can be observed.
    """
    device = dataset.train.images.device
    probe = Probe(model, symmetry, "post", observable(symmetry))
    state = to_device(network, device)
    noise = torch.randn(3, *dataset.input_shape, generator=generator(0, "layers")).to(device)
    seen: dict[tuple[str, int], list[tuple[str, Tensor, Tensor]]] = {}
    for (group, place, (same,)), (_, _, (other,)) in zip(
        probe([state], noise[[0, 1]]), probe([state], noise[[0, 2]]), strict=True
    ):
        seen.setdefault((place, same.shape[1] // 2), []).append((group, same, other))
    last = [found[-1][0] for found in seen.values()]
    layers = []
    for (place, positions), found in seen.items():
        group = found[-1][0]
        layers.append(
            Layer(
                name=group if last.count(group) == 1 else f"{group} ({place})",
                place=place,
                groups=tuple(name for name, *_ in found),
                units=sum(len(values) for _, values, _ in found),
                positions=positions,
                repeated=_repeated(*(torch.cat(values) for values in list(zip(*found, strict=True))[1:])),
            )
        )
    return layers


def _repeated(same: Tensor, other: Tensor) -> int:
    """How often the images come one after the other among the samples of two batches that differ in the second image.

    The samples of the first image are those that stay: the smallest number for which all of them do.

    Args:
        same: (units, 2 positions) of the images 0 and 1.
        other: (units, 2 positions) of the images 0 and 2.
    """
    change = (same - other).abs().amax(0)
    changed = change > _CHANGED * change.max()
    positions = len(changed) // 2
    for times in (n for n in range(1, positions + 1) if positions % n == 0):
        if not changed.reshape(times, 2, -1)[:, 0].any():
            return times
    raise ValueError("the outputs of an image depend on the other images of its batch")
