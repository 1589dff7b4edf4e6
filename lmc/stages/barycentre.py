"""The mean of all networks, brought together, and how far their matchings agree."""

import logging
from collections.abc import Sequence

import torch

from lmc import results
from lmc.evaluation.barycentre import measure_barycentre
from lmc.evaluation.measure import Measurement
from lmc.merge.cycles import cycle_error
from lmc.plan import Plan
from lmc.results import PathName, Row
from lmc.stages.base import Pair
from lmc.stages.measured import measured_rows
from lmc.state import State

log = logging.getLogger(__name__)


def barycentre_rows(plan: Plan, path: PathName, pairs: Sequence[Pair]) -> list[Row]:
    """Measure the mean of all networks, each in the frame of the first."""
    reference = pairs[0].fixed
    towards = [pair for pair in pairs if pair.fixed is reference]
    labels = (reference.label, *(pair.moving.label for pair in towards))
    middle = pairs[0].ends[0]
    if not all(_equal(middle, pair.ends[0]) for pair in towards):
        log.info("no barycentre: the alignment changes network %d anew for every pair", reference.label)
        return []
    members = [middle, *(pair.ends[1] for pair in towards)]

    def measure() -> dict[str, Measurement]:
        correction = plan.statistics.bind(plan.model, plan.symmetry, members, plan.dataset)
        return measure_barycentre(plan.model, members, correction, plan.evaluation.splits(plan.dataset))

    parents = [reference.key, *(key for pair in towards for key in (pair.moving.key, pair.key))]
    made_of = {"statistics": plan.identity("statistics")}
    return measured_rows(plan, "barycentre", path, labels, made_of, parents, measure)


def _equal(first: State, second: State) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def cycle_rows(pairs: Sequence[Pair]) -> list[Row]:
    """Return the share of units that do not come back to themselves around three networks, if all are permuted."""
    permutations = {pair.labels: pair.permutation for pair in pairs}
    known = {labels: permutation for labels, permutation in permutations.items() if permutation is not None}
    if len(known) < len(permutations):
        return []
    labels = tuple(dict.fromkeys(label for pair in permutations for label in pair))
    values = {"cycle_error": ("fraction", cycle_error(known))}
    return list(results.metric_rows("alignment", values, "aligned", labels, None, 0, pairs[0].key))
