"""Activation matching: units are matched that answer alike to the same images."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import PositiveInt
from torch import Tensor

from lmc.alignment.assignment import assign_family, assign_inside, flat, matched
from lmc.alignment.problem import AnySymmetry, Matching, OnStep, Problem, check_pair
from lmc.alignment.similarity.correlation import PairMoments
from lmc.errors import UserError
from lmc.state import State, to_device
from lmc.symmetry.activations import Probe
from lmc.symmetry.permutation import Permutation

Similarity = Literal["pearson", "product"]


@dataclass(frozen=True, kw_only=True)
class ActivationMatching(AnySymmetry):
    """Matches every group on its own by the similarity of its activations (Tatro et al. 2020; Ainsworth et al. 2023).

    Both networks see the same training images, in evaluation mode, in one pass. The samples of a unit are all images
    and all positions of its feature map. A group that can be observed at several places (the blocks of a residual
    stage) is matched on the sum of their similarities, as Tatro et al. do. One assignment solves a group exactly; for
    blocks of units (heads) one assignment inside each pair of blocks, and one over their results.

    The objective is the mean over all units of all groups of the similarity of the matched pair, itself the mean over
    the places where the group is observed; for "pearson" it lies in [-1, 1], and a dead unit (constant in one of the
    networks) counts as 0.

    Trace: one record for each group in the order of the symmetry, {"group" (its number), "units", "places",
    "similarity" (the mean of its matched pairs)}.

    Memory: 8 n^2 bytes for each place at which a group of n units is observed, beside one batch of activations.

    Args:
        images: at most so many training images, the first ones, without augmentation (Tatro et al.: 10,000); None for
            all.
        kind: "post" compares outputs of the nonlinearities, "pre" their inputs.
        similarity: "pearson" is the correlation with pooled mean and deviation, "product" the uncentred mean of the
            products, as in Eq. 1 of Ainsworth et al.
        batch_size: images in a batch; changes nothing but rounding.
    """

    needs_data: ClassVar[bool] = True
    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    images: PositiveInt | None = 10_000
    kind: Literal["post", "pre"] = "post"
    similarity: Similarity = "pearson"
    batch_size: PositiveInt = 500

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the matching; see `lmc.alignment.problem.Alignment`.

        Raises:
            UserError: also if a group cannot be observed, or an activation is not finite.
        """
        check_pair(fixed, moving, problem.symmetry)
        moments = self._observe(fixed, moving, problem, on_step)
        similarities = {name: self._similarity(name, places) for name, places in moments.items() if places}
        symmetry, permutations = problem.symmetry, dict[str, Tensor]()
        for family in symmetry.families.values():
            seen = {name: similarities[name] for name in family if name in similarities}
            permutations |= assign_family(symmetry, family, seen)
        for name in symmetry.shared:
            permutations[name] = assign_inside(symmetry, name, similarities[name], permutations)
        trace: list[dict[str, float]] = []
        for number, name in enumerate(similarities):
            pairs = matched(similarities[name], flat(symmetry, symmetry.chain(name), permutations))
            places = len(moments[name])
            mean = pairs.mean().item() / places
            trace.append({"group": number, "units": len(pairs), "places": places, "similarity": mean})
        units = sum(record["units"] for record in trace)
        objective = sum(record["units"] * record["similarity"] for record in trace) / max(1, units)
        return Matching(Permutation(symmetry, permutations), objective, trace)

    def _observe(
        self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None
    ) -> dict[str, dict[str, PairMoments]]:
        """The moments of every group at every place where it is observed."""
        if problem.model is None:
            raise UserError("activation matching runs the networks, but no model was given; hand it the nn.Module")
        probe = Probe(problem.model, problem.symmetry, self.kind)
        states = [to_device(fixed, problem.device), to_device(moving, problem.device)]
        moments: dict[str, dict[str, PairMoments]] = {name: {} for name in problem.symmetry.groups}
        seen = 0
        for images in problem.images(self.images, self.batch_size):
            for group, place, (ours, theirs) in probe(states, images):
                if place not in moments[group]:
                    moments[group][place] = PairMoments.none(len(ours), ours.device)
                moments[group][place].add(ours, theirs)
            seen += len(images)
            if on_step is not None:
                on_step({"images": seen})
        if not seen:
            raise UserError("activation matching was given no images; raise alignment.images or hand it some batches")
        return moments

    def _similarity(self, group: str, places: dict[str, PairMoments]) -> Tensor:
        found = [place.pearson() if self.similarity == "pearson" else place.product() for place in places.values()]
        total = sum(found[1:], start=found[0])
        if not total.isfinite().all():
            raise UserError(f"activations of group {group!r} are not finite and cannot be compared; train again")
        return total
