"""The mean of all networks, brought together, and how far their matchings agree."""

from collections.abc import Sequence

from lmc import results
from lmc.evaluation.barycentre import measure_barycentre
from lmc.evaluation.measure import Measurement
from lmc.merge.cycles import cycle_error
from lmc.plan import Plan
from lmc.results import PathName, Row
from lmc.stages.base import Pair
from lmc.stages.frame import in_first_frame
from lmc.stages.measured import measured_rows


def barycentre_rows(plan: Plan, path: PathName, pairs: Sequence[Pair]) -> list[Row]:
    """Measure the mean of all networks, each in the frame of the first."""
    frame = in_first_frame(pairs)
    if frame is None:
        return []

    def measure() -> dict[str, Measurement]:
        correction = plan.statistics.bind(plan.model, plan.symmetry, frame.members, plan.dataset)
        return measure_barycentre(plan.model, frame.members, correction, plan.evaluation.splits(plan.dataset))

    made_of = {"statistics": plan.identity("statistics")}
    return measured_rows(plan, "barycentre", path, frame.labels, made_of, frame.parents, measure)


def cycle_rows(pairs: Sequence[Pair]) -> list[Row]:
    """Return the share of units that do not come back to themselves around three networks, if all are permuted."""
    permutations = {pair.labels: pair.permutation for pair in pairs}
    known = {labels: permutation for labels, permutation in permutations.items() if permutation is not None}
    if len(known) < len(permutations):
        return []
    labels = tuple(dict.fromkeys(label for pair in permutations for label in pair))
    values = {"cycle_error": ("fraction", cycle_error(known))}
    return list(results.metric_rows("alignment", values, "aligned", labels, None, 0, pairs[0].key))
