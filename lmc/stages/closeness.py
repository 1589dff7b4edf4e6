"""How close an alignment has brought a pair, beside the barrier."""

from typing import Any

from lmc import results
from lmc.evaluation.matching import l2_reduction, matched_correlation
from lmc.evaluation.measure import Splits
from lmc.plan import Plan
from lmc.results import Row
from lmc.stages.base import Pair
from lmc.stages.measured import kept
from lmc.symmetry.permutation import Permutation


def closeness_rows(plan: Plan, pair: Pair) -> list[Row]:
    """Return the rows of a pair: by how much its distance fell, how alike its units answer, what a soft map costs."""
    splits = plan.evaluation.splits(plan.dataset)
    train = splits.images["train"]

    # A fixed network that is changed, and not only permuted, is at another distance to begin with.
    is_comparable = pair.fixed_transform is None or isinstance(pair.fixed_transform, Permutation)

    def measure() -> dict[str, Any]:
        batches = (inputs for inputs, _ in plan.dataset.batches(train, splits.batch_size))
        before = (pair.fixed.state, pair.moving.state)
        return {
            "l2_reduction": l2_reduction(before, pair.ends, plan.symmetry.parameters) if is_comparable else None,
            "matched_correlation": matched_correlation(plan.model, plan.symmetry, pair.ends, batches),
        }

    made_of = {"what": "closeness", "evaluation": plan.identity("evaluation")}
    key, found = kept(plan, made_of, [pair.fixed.key, pair.moving.key, pair.key], measure)
    rows = list[Row]()
    for metric, unit, split, examples in (
        ("l2_reduction", "fraction", None, 0),
        ("matched_correlation", "correlation", "train", len(train)),
    ):
        if found[metric] is not None:
            values = {metric: (unit, found[metric])}
            rows += results.metric_rows("alignment", values, "aligned", pair.labels, split, examples, key)
    return rows + _accuracy_rows(plan, pair, splits)


def _accuracy_rows(plan: Plan, pair: Pair, splits: Splits) -> list[Row]:
    """What a transform changes in the accuracy of a network: of a permutation, nothing, as has been proved."""
    both = ((pair.fixed, pair.fixed_transform), (pair.moving, pair.transform))
    soft = [(network.state, by) for network, by in both if by is not None and not isinstance(by, Permutation)]
    if not soft:
        return []

    def measure() -> dict[str, Any]:
        found: dict[str, list[float]] = {}
        for state, transform in soft:
            before = splits.measure(plan.model, state)
            after = splits.measure(plan.model, transform.apply(state))
            for split in before:
                found.setdefault(split, []).append(after[split].accuracy - before[split].accuracy)
        return {split: sum(changes) / len(changes) for split, changes in found.items()}

    made_of = {"what": "transformed", "evaluation": plan.identity("evaluation")}
    key, changes = kept(plan, made_of, [pair.fixed.key, pair.moving.key, pair.key], measure)
    return [
        row
        for split, change in changes.items()
        for row in results.metric_rows(
            "alignment",
            {"accuracy_change": ("fraction", change)},
            "aligned",
            pair.labels,
            split,
            len(splits.images[split]),
            key,
        )
    ]
