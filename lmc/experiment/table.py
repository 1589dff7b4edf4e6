"""What an experiment file says of its table: rows, columns, and the published numbers with their source.

A row and a column are overrides of the command line. A job is made of those of a row and of a column, so that the same
lines say what is computed and where it stands in the table.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import ConfigDict, PositiveFloat, TypeAdapter, ValidationError

from lmc.config import TableConfig, nearest
from lmc.errors import UserError
from lmc.measures import MEASURES, Measure

_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_WRITTEN = re.compile(rf"\s*({_NUMBER})\s*(?:(?:±|\+-|\+/-)\s*({_NUMBER})\s*)?")


_STRICT = ConfigDict(extra="forbid")
"""A key that a part of an experiment file does not have is refused."""


@dataclass(frozen=True)
class Published:
    """A number from a paper, in the unit of its column.

    Attributes:
        mean: the number.
        deviation: what stands behind "±"; None: nothing does.
        source: where it was read.
        lead: it was not read at its source, so that it is no reference.
    """

    mean: float
    deviation: float | None
    source: str
    lead: bool


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        label: its heading.
        set: the overrides that it adds to those of a row.
        measure: which rows of the results it shows; None: one that does not exist was named.
        tolerance: how far a number may lie from the published one, in the unit shown; None: nothing is said of it.
        published: label of a row to its number.
        rows: labels of the rows that it exists for.
    """

    label: str
    set: tuple[str, ...]
    measure: Measure | None
    tolerance: float | None
    published: Mapping[str, Published]
    rows: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SpecialCase:
    """Jobs that hold all overrides of `when` have those of `set` as well."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    when: list[str]
    set: list[str]


@dataclass(frozen=True)
class Table:
    """A paper's table.

    Attributes:
        title: what it shows.
        paper: whose it is, and which of its tables.
        rows: label to overrides.
        columns: in their order.
        exceptions: what holds for some jobs alone.
        budgets: name of a budget to the overrides that it puts over every job.
        not_quick: labels of rows and columns that budget=quick leaves out.
        findings: where numbers differ from the published ones, and why.
        problems: a line for every measure or published number that cannot be used; the rest can.
    """

    title: str
    paper: str
    rows: Mapping[str, tuple[str, ...]]
    columns: tuple[Column, ...]
    exceptions: tuple[SpecialCase, ...]
    budgets: Mapping[str, tuple[str, ...]]
    not_quick: tuple[str, ...]
    findings: tuple[str, ...]
    problems: tuple[str, ...]

    def jobs(self) -> dict[str, tuple[str, ...]]:
        """Return what the jobs are known by, in the order of rows and columns, and the overrides of each."""
        found: dict[str, tuple[str, ...]] = {}
        for row, overrides in self.rows.items():
            for column in self.columns:
                if row in column.rows:
                    own = (*overrides, *column.set)
                    more = [line for e in self.exceptions if set(e.when) <= set(own) for line in e.set]
                    found.setdefault(job_name(own), (*own, *more))
        return found

    def within(self, budget: str | None) -> set[str]:
        """Return what the jobs of `budget` are known by: those of every cell that it does not leave out."""
        left_out = self.not_quick if budget == "quick" else ()
        return {
            self.job(row, column)
            for row in self.rows
            for column in self.columns
            if row in column.rows and row not in left_out and column.label not in left_out
        }

    def job(self, row: str, column: Column) -> str:
        """Return what the job of a cell is known by."""
        return job_name((*self.rows[row], *column.set))


def job_name(overrides: Sequence[str]) -> str:
    """Return what a job is known by: its overrides in alphabetical order; the last of several with one key holds."""
    return " ".join(sorted({line.partition("=")[0]: line for line in overrides}.values()))


def read_table(node: Mapping[str, Any] | None, name: str) -> Table | None:
    """Return the table that the node `table` of a configuration describes; None if it has no rows.

    Args:
        node: plain values.
        name: of the experiment, for messages.

    Raises:
        UserError: the table cannot be used; names the experiment and the place.
    """
    if node is None or not node.get("rows"):
        return None
    read = _checked(node, name)
    if not read.columns:
        raise UserError(f"experiment={name}: table.columns is empty; a table has a column for each number")
    for column in read.columns.values():
        if unknown := [row for row in column.rows or () if row not in read.rows]:
            raise UserError(f"experiment={name}: table.rows has no {unknown[0]!r}; {nearest(unknown[0], read.rows)}")
    labels = [*read.rows, *read.columns]
    if unknown := [label for label in read.not_quick if label not in labels]:
        hint = nearest(unknown[0], labels)
        raise UserError(f"experiment={name}: table.not_quick: no row or column is called {unknown[0]!r}; {hint}")
    problems: list[str] = []
    columns = [_column(label, column, read, f"experiment={name}", problems) for label, column in read.columns.items()]
    return Table(
        title=read.title,
        paper=read.paper,
        rows={label: tuple(overrides) for label, overrides in read.rows.items()},
        columns=tuple(columns),
        exceptions=tuple(read.exceptions),
        budgets={"smoke": tuple(read.smoke), "quick": tuple(read.quick)},
        not_quick=tuple(read.not_quick),
        findings=tuple(read.findings),
        problems=tuple(problems),
    )


@dataclass(frozen=True, kw_only=True)
class _ColumnAsWritten:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    measure: str | Measure
    set: list[str] = field(default_factory=list)
    tolerance: PositiveFloat | None = None
    published: dict[str, float | str] = field(default_factory=dict)
    source: str = ""
    lead: bool = False
    rows: list[str] | None = None


@dataclass(kw_only=True)
class _TableAsWritten(TableConfig):
    """The node of the configuration, with everything in it checked; the rest of its fields Hydra has checked."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    rows: dict[str, list[str]] = field(default_factory=dict)
    columns: dict[str, _ColumnAsWritten] = field(default_factory=dict)
    exceptions: list[SpecialCase] = field(default_factory=list)


_NAMED = {measure.name: measure for measure in MEASURES}
_TABLE = TypeAdapter(_TableAsWritten)


def _checked(node: Mapping[str, Any], name: str) -> _TableAsWritten:
    try:
        return _TABLE.validate_python(dict(node))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("table", *first["loc"])))
        raise UserError(f"experiment={name}: {place}={first['input']!r} cannot be used: {first['msg']}") from None


def _column(label: str, written: _ColumnAsWritten, table: _TableAsWritten, name: str, problems: list[str]) -> Column:
    """The column as it is used; what cannot be used of it becomes a line of `problems`."""
    where = f"{name}: table.columns.{label}"
    rows = tuple(table.rows) if written.rows is None else tuple(written.rows)
    measure = _NAMED.get(written.measure) if isinstance(written.measure, str) else written.measure
    if measure is None:
        hint = nearest(str(written.measure), _NAMED)
        problems.append(f"{where}.measure={written.measure} does not exist; {hint}known: {', '.join(_NAMED)}")
    numbers = {}
    for row, value in written.published.items():
        if row not in rows:
            problems.append(f"{where}.published: no row {row!r}; {nearest(row, rows)}the rows are {'; '.join(rows)}")
        elif (number := _number(value, written.source or table.source, lead=written.lead)) is None:
            problems.append(f'{where}.published: {value!r} is not a number; write it as 87.4 or as "87.4 ± 0.1"')
        else:
            numbers[row] = number
    return Column(label, tuple(written.set), measure, written.tolerance, numbers, rows)


def _number(value: float | str, source: str, *, lead: bool) -> Published | None:
    if isinstance(value, str):
        written = _WRITTEN.fullmatch(value)
        if written is None:
            return None
        mean, deviation = written.groups()
        return Published(float(mean), None if deviation is None else float(deviation), source, lead)
    return Published(float(value), None, source, lead)
