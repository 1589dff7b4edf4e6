"""The moments of the activations of every group, wherever it is observed, from one pass of both networks."""

from collections.abc import Sequence

import torch

from lmc.alignment.problem import OnStep, Problem
from lmc.alignment.similarity.correlation import PairMoments
from lmc.errors import UserError
from lmc.state import State, to_device
from lmc.symmetry.activations import Kind, Probe


def observe(
    fixed: State,
    moving: State,
    problem: Problem,
    *,
    kind: Kind,
    images: int | None,
    batch_size: int,
    joint: bool,
    groups: Sequence[str] | None = None,
    on_step: OnStep | None = None,
) -> dict[str, dict[str, PairMoments]]:
    """Return group -> place -> moments, over at most the first `images` images (None: all).

    Args:
        fixed: the network that stays.
        moving: the other.
        problem: the architecture, its symmetry and the images.
        kind: "post" observes the outputs of the nonlinearities, "pre" their inputs.
        images: at most so many.
        batch_size: images in a batch.
        joint: whether the n units of both networks, those of `fixed` first, are compared with themselves, so that the
            products are (2n, 2n) and cover the pairs within a network too; else they are (n, n).
        groups: the groups to observe; None for all.
        on_step: called after every batch with the images seen so far.

    Raises:
        UserError: there is no model or no image, a group cannot be observed, or an activation is not finite.
    """
    if problem.model is None:
        raise UserError("this alignment runs the networks, but no model was given; hand it the nn.Module")
    probe = Probe(problem.model, problem.symmetry, kind, groups)
    states = [to_device(fixed, problem.device), to_device(moving, problem.device)]
    moments: dict[str, dict[str, PairMoments]] = {name: {} for name in groups or problem.symmetry.groups}
    seen = 0
    for batch in problem.images(images, batch_size):
        for group, place, (ours, theirs) in probe(states, batch):
            first, second = (torch.cat([ours, theirs]),) * 2 if joint else (ours, theirs)
            if place not in moments[group]:
                moments[group][place] = PairMoments.none(len(first), first.device)
            moments[group][place].add(first, second)
        seen += len(batch)
        if on_step is not None:
            on_step({"images": seen})
    if not seen:
        raise UserError("this alignment was given no images; raise alignment.images or hand it some batches")
    for group, places in moments.items():
        if not all(place.products.isfinite().all() for place in places.values()):
            raise UserError(f"activations of group {group!r} are not finite and cannot be compared; train again")
    return moments
