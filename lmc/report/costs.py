"""What the missing cells of a paper's table would cost, judged by the times of the jobs that have ended."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lmc.report.paper import PaperTable
from lmc.report.runs import FinishedRun

# Settings that come after the training of the networks: jobs that differ in nothing else share them.
_AFTER_TRAINING = frozenset({"alignment", "merge", "curve", "statistics", "evaluation", "analysis", "seed"})
_SEARCHES = frozenset({"alignment", "merge"})


@dataclass(frozen=True)
class Cost:
    """What a missing job would cost.

    Attributes:
        job: what it is known by.
        seconds: for as many repetitions as the nearest job has.
        like: the finished job that it was judged by: the one that shares most settings with it.
        at_least: the search for a permutation comes on top: it is by another method, of which nothing is known.
    """

    job: str
    seconds: float
    like: str
    at_least: bool

    @property
    def text(self) -> str:
        """For people: "about 12 min", "at least 3.5 h"."""
        return f"{'at least' if self.at_least else 'about'} {duration(self.seconds)}"


def missing_costs(found: PaperTable) -> list[Cost]:
    """Return an estimate for every missing job: the time of the finished job that is most like it.

    Networks that the finished job has trained are not counted again if both differ only in what comes after training.
    Empty if the finished runs do not say how long they took.
    """
    known = {job: runs for job, runs in found.runs.items() if any(run.made for run in runs)}
    overrides = {job: set(lines) for job, lines in found.table.jobs().items()}
    costs = []
    for job in found.missing if known else ():
        like = max(known, key=lambda other: len(overrides[other] & overrides[job]))
        differing = overrides[like] ^ overrides[job]
        groups = {line.partition("=")[0].split(".")[0] for line in differing}
        searches = bool(groups & _SEARCHES)
        without = {*(["endpoints"] if groups <= _AFTER_TRAINING else []), *(["alignment"] if searches else [])}
        costs.append(Cost(job, _seconds(known[like], without), like, searches))
    return costs


def total(costs: Sequence[Cost]) -> str:
    """Return what all of them would cost together, for people."""
    seconds = sum(cost.seconds for cost in costs)
    return Cost("", seconds, "", any(cost.at_least for cost in costs)).text


def _seconds(runs: Sequence[FinishedRun], without: Collection[str]) -> float:
    """Seconds that all artifacts of `runs` took together, each of them once, but for those of some stages."""
    artifacts: dict[str, Mapping[str, object]] = {}
    for run in runs:
        artifacts |= run.made.get("artifacts", {})
    return sum(float(str(one["seconds"])) for one in artifacts.values() if one["stage"] not in without)


def duration(seconds: float) -> str:
    """Return a duration for people: "40 s", "12 min", "3.5 h", "2.1 days"."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.{1 if unit != 'min' else 0}f} {unit}"
    return f"{seconds:.0f} s"
