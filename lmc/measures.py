"""Which rows of the results make a number of a table, and how it is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import ConfigDict, NonNegativeInt, PositiveFloat

from lmc.results import ANALYSIS, Row


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A column of a report; in an experiment file, what a column of its table shows.

    Attributes:
        name: its name in report.csv, where values keep the unit of results.jsonl; empty in an experiment file.
        group: heading that it shares with its neighbours.
        label: its own heading.
        unit: unit of the value as shown.
        what, path, split, metric: the rows it comes from (None: any).
        analysis: the analysis that found them; None: none did.
        more: what else the rows say of themselves ({"layer": ...}).
        complement: it is 1 - value (an accuracy from an error).
        scale: factor from the value to what is shown (100 for %).
        digits: digits shown after the point.
        lower_is_better: which end of the column is the good one; None if neither is.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str = ""
    group: str = ""
    label: str = ""
    unit: str = ""
    what: str
    path: str | None = None
    split: str | None = None
    metric: str
    analysis: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)
    complement: bool = False
    scale: PositiveFloat = 1.0
    digits: NonNegativeInt = 3
    lower_is_better: bool | None = True

    @property
    def heading(self) -> str:
        """The column's name in one line, with its unit."""
        return f"{self.group} {self.own_heading}"

    @property
    def own_heading(self) -> str:
        """The column's name below that of its group, with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def fits(self, row: Row) -> bool:
        """Tell whether `row` is one of the values of this column; what analyses find must be asked for by name."""
        return (
            row.more.get(ANALYSIS) == self.analysis
            and row.what == self.what
            and row.metric == self.metric
            and self.path in (None, row.path)
            and self.split in (None, row.split)
            and all(row.more.get(name) == value for name, value in self.more.items())
        )

    def shown(self, value: float) -> str:
        """Return `value` as it is printed, without its unit."""
        return f"{value * self.scale:.{self.digits}f}"


def _barrier(path: str, split: str, metric: str, what: str = "barrier", group: str = "") -> Measure:
    percent = metric == "error"
    return Measure(
        name=f"{path}_{split}_{metric}_{what}",
        group=group or f"{path} barrier",
        label=f"{split} {metric}",
        unit="%" if percent else "nats",
        what=what,
        path=path,
        split=split,
        metric=metric,
        scale=100.0 if percent else 1.0,
        digits=2 if percent else 3,
    )


def _accuracy(name: str, group: str, what: str, path: str | None = None, label: str = "test accuracy") -> Measure:
    return Measure(
        name=f"{name}_test_accuracy",
        group=group,
        label=label,
        unit="%",
        what=what,
        path=path,
        split="test",
        metric="error",
        complement=True,
        scale=100.0,
        digits=2,
        lower_is_better=False,
    )


def _level(group: str, what: str, path: str) -> Measure:
    name, label = f"{group}_test_loss", "test loss"
    return Measure(name=name, group=group, label=label, unit="nats", what=what, path=path, split="test", metric="loss")


def _alignment(metric: str, label: str, unit: str, *, what: str = "alignment", digits: int = 2, **more: Any) -> Measure:
    return Measure(
        name=f"alignment_{metric}", group="alignment", label=label, unit=unit, what=what, metric=metric, digits=digits,
        **more,
    )  # fmt: skip


MEASURES = (
    *(_barrier("aligned", split, metric) for metric in ("loss", "error") for split in ("train", "test")),
    *(
        _barrier("aligned", split, "loss", "barrier_midpoint", "aligned midpoint barrier")
        for split in ("train", "test")
    ),
    _barrier("unaligned", "train", "loss"),
    # The highest error of a path is its lowest accuracy.
    _accuracy("path_lowest", "aligned path", "path_max", "aligned", "lowest test accuracy"),
    _accuracy("path_mean", "aligned path", "path_mean", "aligned", "mean test accuracy"),
    _accuracy("midpoint", "aligned midpoint", "path_midpoint", "aligned"),
    _accuracy("endpoint", "endpoints", "endpoint"),
    _accuracy("barycentre", "barycentre", "barycentre", "aligned"),
    _level("barycentre", "barycentre", "aligned"),
    _alignment("l2_reduction", "L2 reduction", "%", scale=100.0, lower_is_better=False),
    _alignment("objective", "objective", "", digits=4, lower_is_better=None),  # of every method its own
    _alignment("matched_correlation", "matched correlation", "", digits=3, lower_is_better=False),
    _alignment("accuracy_change", "accuracy change", "%", scale=100.0, split="test", lower_is_better=False),
    _alignment("cycle_error", "cycle error", "%", scale=100.0),
    _alignment("weight_matching", "as weight matching", "%", what="agreement", scale=100.0, lower_is_better=None),
    _alignment("seconds", "time", "s", lower_is_better=None),
)


TREND_MEASURES = tuple(_barrier(path, "test", "loss") for path in ("unaligned", "aligned"))
"""What is drawn against a setting that is a number."""
