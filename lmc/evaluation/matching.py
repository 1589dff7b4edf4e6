"""How close an alignment has brought two networks: in weights, and in what their units answer."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lmc.state import State
from lmc.statistics.moments import JointMoments, Pool
from lmc.symmetry.activations import Probe
from lmc.symmetry.structure import Symmetry

_RESOLUTION = torch.finfo(torch.float32).eps


def l2_reduction(
    before: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    after: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    parameters: Iterable[str],
) -> float:
    """Return (||A - B|| - ||A' - B'||) / ||A - B|| over trainable tensors (Ito et al. 2025); 0 for equal networks.

    Args:
        before: the networks A and B as they were trained.
        after: the same networks brought together.
        parameters: the names of the trainable tensors.
    """
    names = sorted(parameters)
    apart, together = (
        sum(torch.dist(first[name].double(), second[name].double()).square().item() for name in names) ** 0.5
        for first, second in (before, after)
    )
    return (apart - together) / apart if apart else 0.0


def matched_correlation(
    model: nn.Module, symmetry: Symmetry, ends: tuple[State, State], batches: Iterable[Tensor]
) -> float | None:
    """Return the mean Pearson correlation of the units of two networks that stand at the same place.

    The mean over all units of all groups, of each unit over the places where it is observed: outputs of the
    nonlinearities, with all images and all positions of the feature map as samples. That is the objective of
    `ActivationMatching` on these images. A dead unit (constant in one of the networks) counts as 0.

    Args:
        model: the architecture; never changed.
        symmetry: of the architecture; groups that appear in no value of the network are left out.
        ends: the networks, brought together, on the device of the images.
        batches: (batch, ...) inputs.

    Returns:
        None if no group can be observed.
    """
    seen = [name for name, group in symmetry.groups.items() if any(site.kind == "post" for site in group.sites)]
    if not seen:
        return None
    probe = Probe(model, symmetry, "post", seen)
    pools: dict[str, Pool[JointMoments]] = {}
    for images in batches:
        for group, place, values in probe(ends, images):
            pools.setdefault(group, Pool()).add(place, JointMoments.of(values, 0))
    units = torch.cat(
        [torch.stack([_correlation(joint) for joint in pool.values()]).mean(0) for pool in pools.values()]
    )
    return units.mean().item()


def _correlation(joint: JointMoments) -> Tensor:
    """(units,) the correlation of each unit of one network with the same unit of the other."""
    squares = joint.products.diagonal().T  # (2, units)
    dead = ((squares / joint.count).sqrt() <= _RESOLUTION * joint.mean.abs()).any(0)
    return torch.where(dead, 0.0, joint.products[0, 1] * squares.prod(0).rsqrt()).clamp(-1, 1)
