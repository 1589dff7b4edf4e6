"""The order of the stages, written once: `run`, read from top to bottom, is the method section of a paper."""

import itertools

from lmc.merge.pairs import Pairs
from lmc.plan import Plan
from lmc.stages.alignment import IDENTITY, align, join
from lmc.stages.analysis import analyse_pair, analyse_together
from lmc.stages.barycentre import barycentre_rows, cycle_rows
from lmc.stages.base import Observer, Pair, Results
from lmc.stages.closeness import closeness_rows
from lmc.stages.endpoints import endpoint, endpoint_rows
from lmc.stages.path import LINE, join_pairs, measure_path


def run(plan: Plan, observer: Observer) -> Results:
    """Train or load the networks, bring them together, join every pair by a path, and measure the path.

    The straight line between the unaligned networks is always measured beside it.

    Args:
        plan: from `lmc.plan.prepare`, which has checked everything that can be checked before training.
        observer: is shown the progress and the history of every stage.

    Raises:
        UserError: training diverged, or the store can no longer be written.
    """
    networks = [endpoint(plan, label, observer) for label in plan.labels]
    found = Results(rows=[row for network in networks for row in endpoint_rows(plan, network)])
    unaligned = [align(plan, IDENTITY, *two, observer)[0] for two in itertools.combinations(networks, 2)]
    aligned: list[Pair] = []
    if isinstance(plan.merge, Pairs):
        for two in itertools.combinations(networks, 2):
            pair, rows = align(plan, plan.settings["alignment"], *two, observer)
            found.rows += rows
            aligned.append(pair)
    else:
        aligned, rows = join(plan, plan.merge, networks, observer)
        found.rows += rows
    curves = join_pairs(plan, aligned, plan.settings["curve"], observer)
    lines = join_pairs(plan, unaligned, LINE, observer)
    for pair, joined, line in zip(aligned, curves, lines, strict=True):
        found.rows += closeness_rows(plan, pair)
        found.add(measure_path(plan, "aligned", joined, observer))
        found.add(measure_path(plan, "unaligned", line, observer))
        found.add(analyse_pair(plan, joined, observer))
        if (matching := pair.matching) is not None:
            found.matchings[pair.labels] = matching
    if len(networks) > 2:
        found.rows += cycle_rows(aligned)
        found.rows += barycentre_rows(plan, "aligned", aligned)
        found.rows += barycentre_rows(plan, "unaligned", unaligned)
    found.add(analyse_together(plan, aligned, observer))
    return found
