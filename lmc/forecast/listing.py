"""The jobs of an experiment as a table for the terminal."""

from collections.abc import Sequence

from lmc.forecast.composed import composed_jobs
from lmc.forecast.forecast import Forecast, forecast
from lmc.forecast.times import Stopwatch
from lmc.provenance import hardware
from lmc.report.costs import duration
from lmc.report.text import as_text

_NOTE = (
    "Judged by a few steps of each kind, for one job at a time; searches for permutations and analyses come on top. "
    "What several jobs share (networks, unaligned paths) is done once: its time stands with the first."
)


def listing(arguments: Sequence[str]) -> str:
    """Return what `lmc -m ARGUMENTS` would do: its jobs, the networks that are there, what is missing, and the time.

    Raises:
        UserError: a job could not be run.
    """
    stopwatch = Stopwatch()
    found = [forecast(overrides, settings, stopwatch) for overrides, settings in composed_jobs(arguments)]
    done: set[str] = set()
    body, total = [], 0.0
    for number, job in enumerate(found):
        new = {key: seconds for key, seconds in job.shared.items() if key not in done}
        done |= set(new)
        seconds = sum(new.values()) + job.seconds
        total += seconds
        networks = f"{len(job.there)} of {len(job.networks)}"
        body.append([str(number), _text(job, found), networks, job.missing or "nothing", duration(seconds)])
    table = as_text(
        f"{len(found)} {'job' if len(found) == 1 else 'jobs'} of: lmc {' '.join(arguments)}",
        ["job", "settings", "networks there", "missing from", "time"],
        body,
        names=2,
    )
    needed = {key for job in found for key in job.networks}
    there = {key for job in found for key in job.there}
    ended = sum(job.missing is None for job in found)
    return (
        f"{table}{ended} of {len(found)} jobs find all they need; {len(there)} of {len(needed)} networks are there\n"
        f"about {duration(total)} on {hardware(_device(found))}\n{_NOTE}"
    )


def _text(job: Forecast, jobs: Sequence[Forecast]) -> str:
    """The overrides that a job does not share with all others."""
    common = set.intersection(*(set(one.overrides) for one in jobs)) if len(jobs) > 1 else set()
    own = [line for line in job.overrides if line not in common and not line.startswith("table.")]
    return " ".join(own) or "as given"


def _device(jobs: Sequence[Forecast]) -> str:
    return jobs[0].device if jobs else "cpu"
