"""How far the permutations of several runs agree: the share of units that two of them match alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lmc.report.grouping import Setting
from lmc.report.runs import FinishedRun
from lmc.results import Row

REFERENCE = "weight_matching"
"""The alignment that all others are compared with in the table."""


@dataclass(frozen=True)
class Agreements:
    """Permutations compared with each other.

    Attributes:
        labels: of what has a permutation of its own; settings that share all of theirs are one.
        shares: [one][other], the share of units matched alike, mean over the pairs of networks that both have
            permuted; None if there are none.
    """

    labels: list[str]
    shares: list[list[float | None]]


def compare(settings: Sequence[Setting]) -> Agreements | None:
    """Compare the permutations of all settings; None unless at least two differ."""
    clusters: list[list[Setting]] = []
    for setting in settings:
        if not any(run.matchings for run in setting.runs):
            continue
        same = next((members for members in clusters if set(_all_shares(members[:1], [setting])) == {1.0}), None)
        if same is None:
            clusters.append([setting])
        else:
            same.append(setting)
    if len(clusters) < 2:
        return None
    shares = [[_mean(_all_shares(ours, theirs)) for theirs in clusters] for ours in clusters]
    if not any(shares[i][j] is not None for i in range(len(shares)) for j in range(i)):
        return None
    return Agreements([_label(members) for members in clusters], shares)


def with_agreement(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Return `runs`, each with a row for every pair that was also permuted by weight matching: the share of units."""
    references = [run for run in runs if run.choices.get("alignment") == REFERENCE and run.matchings]
    if len(references) == len(runs):  # a column of nothing but 100 %
        return list(runs)
    return [replace(run, rows=[*run.rows, *_rows(run, references)]) for run in runs]


def _rows(run: FinishedRun, references: Sequence[FinishedRun]) -> list[Row]:
    rows = {}
    for reference in references:
        for pair, value in _shares(run, reference).items():
            rows[pair] = Row(
                what="agreement",
                path="aligned",
                pair=pair,
                split=None,
                metric=REFERENCE,
                unit="fraction",
                value=value,
                examples=0,
                key=str(run.folder),
            )
    return list(rows.values())


def _shares(one: FinishedRun, other: FinishedRun) -> dict[tuple[int, ...], float]:
    """Pair to the share of units matched alike, for the pairs of the same networks that both runs have permuted."""
    found = {}
    for pair, ours in one.matchings.items():
        theirs = other.matchings.get(pair)
        if theirs is None or _networks(one, pair) != _networks(other, pair):
            continue
        if {name: len(units) for name, units in ours.items()} == {name: len(units) for name, units in theirs.items()}:
            alike = sum(int((units == theirs[name]).sum()) for name, units in ours.items())
            found[pair] = alike / max(1, sum(len(units) for units in ours.values()))
    return found


def _networks(run: FinishedRun, pair: Sequence[int]) -> set[tuple[tuple[int, ...], str]]:
    """What tells the networks of a pair from others with the same seeds: the keys of their measurements."""
    return {(row.pair, row.key) for row in run.rows if row.what == "endpoint" and row.pair[0] in pair}


def _all_shares(ours: Sequence[Setting], theirs: Sequence[Setting]) -> list[float]:
    first, second = ([run for setting in settings for run in setting.runs] for settings in (ours, theirs))
    return [value for one in first for other in second for value in _shares(one, other).values()]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _label(members: Sequence[Setting]) -> str:
    common = [values[0] for values in zip(*(setting.values for setting in members), strict=True) if len({*values}) == 1]
    return ", ".join(common) or members[0].label
