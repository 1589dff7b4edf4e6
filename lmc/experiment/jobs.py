"""The jobs of a table under what was asked for on the command line."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from lmc.errors import UserError
from lmc.experiment.table import Table

# What says where and how often something is computed, not what: no change of the experiment.
_HARMLESS = ("device", "experiment", "budget", "seeds", "table", "store", "tracker", "hydra", "dataset.root")


@dataclass(frozen=True)
class Job:
    """A job of a table.

    Attributes:
        name: what it is known by in the table.
        overrides: what makes it; of several with one key the last holds.
    """

    name: str
    overrides: tuple[str, ...]


def chosen_jobs(
    table: Table, only: Sequence[str], budget: str | None, arguments: Sequence[str]
) -> tuple[list[Job], list[str]]:
    """Return the jobs of `table` that are asked for, and the arguments that hold for each of them.

    An argument whose key is one of the table's (dataset=cifar10) chooses the jobs that hold its values; a value that
    the table does not have takes the place of the only one that is left. All other arguments hold for every job. What
    the budget leaves out is done only if nothing else was asked for.

    Args:
        table: the table.
        only: "key:value" of rows or columns that are wanted; of several with one key any.
        budget: the name of the chosen budget, whose overrides come after those of rows and columns.
        arguments: the command line.

    Raises:
        UserError: nothing of the table is left, or an argument could stand for several of its values.
    """
    jobs = [Job(name, overrides) for name, overrides in table.jobs().items()]
    wanted: dict[str, list[str]] = {}
    for entry in only:
        key, _, value = entry.partition(":")
        wanted.setdefault(key, []).append(value)
    for key, values in wanted.items():
        offered = _offered(jobs, key)
        if unknown := [value for value in values if _same(value) not in map(_same, offered)]:
            raise UserError(f"table.only=[{key}:{unknown[0]}] leaves no job; {_what_there_is(jobs, key)}")
        jobs = _having(jobs, key, values)
    for_all = []
    for line, argument in zip(arguments, parse(arguments), strict=True):
        key, values = argument.get_key_element(), _values(argument)
        offered = _offered(jobs, key)
        if offered and all(_same(value) in map(_same, offered) for value in values):
            jobs = _having(jobs, key, values)
            continue
        for_all.append(line)
        if len(offered) > 1:
            raise UserError(
                f"{key}={','.join(values)}: {_what_there_is(jobs, key)}; choose among them, or say with "
                f"table.only=[{key}:{offered[0]}] which of them another value is to take the place of"
            )
    within = table.within(budget)
    jobs = [job for job in jobs if job.name in within] or jobs
    of_budget = table.budgets.get(budget or "", ())
    return [Job(job.name, (*job.overrides, *of_budget)) for job in jobs], for_all


def changes(table: Table, arguments: Sequence[str]) -> list[str]:
    """Return those of the command line's overrides that make another experiment of the one in the file.

    What chooses among the table's own rows and columns, repeats it with other seeds, or says where it is computed and
    kept, does not.
    """
    jobs = [Job(name, overrides) for name, overrides in table.jobs().items()]
    found = []
    for line, argument in zip(arguments, parse(arguments), strict=True):
        key, values = argument.get_key_element(), _values(argument)
        if any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in _HARMLESS):
            continue
        offered = {_same(value) for value in _offered(jobs, key)}
        if not all(_same(value) in offered for value in values):
            found.append(line)
    return found


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def parse(lines: Iterable[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar."""
    parsed: list[Override] = _parser().parse_overrides(list(lines))
    return parsed


def _values(argument: Override) -> list[str]:
    if argument.is_sweep_override():
        return list(argument.sweep_string_iterator()) if argument.is_discrete_sweep() else [str(argument.input_line)]
    return [argument.get_value_element_as_str()]


def _settings(job: Job) -> Mapping[str, str]:
    return dict(line.split("=", 1) for line in job.overrides)


def _offered(jobs: Sequence[Job], key: str) -> list[str]:
    return list(dict.fromkeys(own[key] for job in jobs if key in (own := _settings(job))))


def _having(jobs: Sequence[Job], key: str, values: Sequence[str]) -> list[Job]:
    wanted = {_same(value) for value in values}
    return [job for job in jobs if key in (own := _settings(job)) and _same(own[key]) in wanted]


def _what_there_is(jobs: Sequence[Job], key: str) -> str:
    offered = _offered(jobs, key)
    if offered:
        return f"the table has {key}={','.join(offered)}"
    keys = dict.fromkeys(name for job in jobs for name in _settings(job))
    return f"the jobs of the table differ in {', '.join(keys)}"


def _same(value: str) -> str:
    """A form in which equal values are equal: 1 and 1.0, [0,1] and [0, 1]."""
    text = value.replace(" ", "")
    try:
        return repr(float(text))
    except ValueError:
        return text
