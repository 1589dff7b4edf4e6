"""Which runs of a sweep belong together: those whose settings differ in nothing but the seeds."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmc.report.runs import FinishedRun

ABSENT = "–"
# What never makes a setting of its own: the repetitions, and what cannot change a result.
_LEFT_OUT = frozenset({"seeds", "seed", "device", "store", "tracker", "hydra", "table"})
_SHOWN_ALWAYS = ("dataset", "architecture", "alignment", "curve")


@dataclass(frozen=True)
class Setting:
    """The runs of one setting.

    Attributes:
        values: what its columns hold, in the order of the columns.
        runs: its runs; they differ in seeds.
    """

    values: tuple[str, ...]
    runs: list[FinishedRun]

    @property
    def label(self) -> str:
        """The setting in one line."""
        return label_of(self.values)


def label_of(values: Sequence[str]) -> str:
    """Return the values of some columns in one line."""
    return ", ".join(value for value in values if value != ABSENT) or "all runs"


def group(runs: Sequence[FinishedRun]) -> tuple[list[str], list[Setting]]:
    """Return the names of the settings that differ between `runs`, and the runs grouped by them, in their order.

    A config group that differs gives a column with the name of its option; a single value gives a column with its
    dotted key. A value that only follows from the option chosen above it gives none.
    """
    described = [_described(run) for run in runs]
    columns = [name for name in _names(described) if _differs(name, described, runs)]
    if not columns:
        columns = [name for name in _SHOWN_ALWAYS if all(name in run.choices for run in runs)]
    settings: dict[tuple[str, ...], Setting] = {}
    for run, values in zip(runs, described, strict=True):
        key = tuple(values.get(name, ABSENT) for name in columns)
        settings.setdefault(key, Setting(key, [])).runs.append(run)
    return columns, list(settings.values())


def _described(run: FinishedRun) -> dict[str, str]:
    """Every choice and every single value of a run, by dotted key, as text."""
    choices = {name: option for name, option in run.choices.items() if name.split(".")[0] not in _LEFT_OUT}
    values = {name: _text(value) for name, value in _leaves(run.settings) if not _is_left_out(name)}
    return {**choices, **values}


def _leaves(node: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _is_left_out(name: str) -> bool:
    parts = name.split(".")
    # The batch size of a training changes its result; that of a measurement does not.
    measures_in_batches = parts[-1] == "batch_size" and "training" not in parts
    return parts[0] in _LEFT_OUT or measures_in_batches


def _names(described: Sequence[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(name for values in described for name in values))


def _differs(name: str, described: Sequence[Mapping[str, str]], runs: Sequence[FinishedRun]) -> bool:
    """Tell whether `name` has several values among runs that agree in every option chosen above it."""
    seen: dict[tuple[str | None, ...], str] = {}
    parts = name.split(".")
    above = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    for run, values in zip(runs, described, strict=True):
        chosen = tuple(run.choices.get(place) for place in above)
        value = values.get(name, ABSENT)
        if seen.setdefault(chosen, value) != value:
            return True
    return False


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
