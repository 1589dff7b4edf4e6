"""The moments of the activations of every group, wherever it is observed, from as few passes as memory allows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt

from lmc.alignment.problem import OnStep, Problem
from lmc.alignment.similarity.correlation import PairMoments
from lmc.errors import UserError
from lmc.state import State, to_device
from lmc.symmetry.activations import Probe
from lmc.symmetry.structure import Symmetry

_BYTES = 8
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class ByActivations:
    """The settings of methods that compare activations, and how they see them.

    Both networks see the same training images, without augmentation and in evaluation mode.

    Args:
        images: at most so many training images, the first ones; None for all.
        kind: "post" compares outputs of the nonlinearities, "pre" their inputs.
        batch_size: images in a batch; changes nothing but rounding.
        memory: GiB of moments that are held at a time; groups for which there is no room are observed in further passes
            over the images.
    """

    needs_data: ClassVar[bool] = True
    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size", "memory"})

    images: PositiveInt | None = 10_000
    kind: Literal["post", "pre"] = "post"
    batch_size: PositiveInt = 500
    memory: Annotated[float, Field(gt=0)] = 4.0

    def observe(
        self,
        fixed: State,
        moving: State,
        problem: Problem,
        *,
        joint: bool,
        groups: Sequence[str] | None = None,
        on_step: OnStep | None = None,
    ) -> Iterator[tuple[str, dict[str, PairMoments]]]:
        """Yield each group that can be observed, with its moments at every place; the members of a family in a row.

        A group that has gone by is no longer held here.

        Args:
            fixed: the network that stays.
            moving: the other.
            problem: the architecture, its symmetry and the images.
            joint: whether the n units of both networks, those of `fixed` first, are compared with themselves, so that
                the products are (2n, 2n) and cover the pairs within a network too; else they are (n, n).
            groups: the groups to observe; None for all.
            on_step: called after every batch with the pass and the images seen in it so far.

        Raises:
            UserError: there is no model or no image, a group cannot be observed, or an activation is not finite.
        """
        if problem.model is None:
            raise UserError("this alignment runs the networks, but no model was given; hand it the nn.Module")
        probe = Probe(problem.model, problem.symmetry, self.kind, groups)
        states = [to_device(fixed, problem.device), to_device(moving, problem.device)]
        rooms = {
            name: places * _BYTES * (problem.symmetry.units(name) * (1 + joint)) ** 2
            for name, places in probe.places.items()
        }
        for number, chosen in enumerate(_passes(problem.symmetry, rooms, self.memory * _GIB)):
            moments: dict[str, dict[str, PairMoments]] = {name: {} for name in chosen}
            seen = 0
            for batch in problem.images(self.images, self.batch_size):
                for group, place, (ours, theirs) in probe(states, batch, chosen):
                    first, second = (torch.cat([ours, theirs]),) * 2 if joint else (ours, theirs)
                    if place not in moments[group]:
                        moments[group][place] = PairMoments.none(len(first), first.device)
                    moments[group][place].add(first, second)
                seen += len(batch)
                if on_step is not None:
                    on_step({"pass": number + 1, "images": seen})
            if not seen:
                raise UserError("this alignment was given no images; raise alignment.images or hand it some batches")
            for name in chosen:
                if not all(place.products.isfinite().all() for place in moments[name].values()):
                    raise UserError(f"activations of group {name!r} are not finite and cannot be compared; train again")
            for name in chosen:
                yield name, moments.pop(name)


def _passes(symmetry: Symmetry, rooms: dict[str, int], limit: float) -> Iterator[list[str]]:
    """Split the groups that take room into passes: families stay whole, and each pass holds at least one."""
    families = [*symmetry.families.values(), *((name,) for name in symmetry.shared)]
    chosen, taken = list[str](), 0
    for family in families:
        members = [name for name in family if name in rooms]
        room = sum(rooms[name] for name in members)
        if chosen and taken + room > limit:
            yield chosen
            chosen, taken = [], 0
        chosen, taken = [*chosen, *members], taken + room
    if chosen:
        yield chosen
