"""A paper's table filled with what runs found, with the published numbers beside it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmc.errors import UserError
from lmc.experiment.table import Column, Published, Table, read_table
from lmc.report.estimates import Estimate, estimate
from lmc.report.runs import FinishedRun

FULL = "paper"
"""The budget under which an experiment is what its file says: the recipe to the letter."""

# Where the same images come from: worth a line, but no change of the recipe.
_SOURCES = ("dataset=", "dataset.path=", "dataset.hub=", "dataset.revision=", "dataset.download=")


@dataclass(frozen=True)
class Cell:
    """A number of a paper's table.

    Attributes:
        row: the label of its row.
        column: its column.
        job: the job that fills it.
        ours: what runs found, in the unit of results.jsonl; None: no run has filled it yet.
        published: the paper's number, in the unit of the column; None: there is none.
        judged: the runs follow the recipe to the letter, so that the difference may be held against the tolerance.
    """

    row: str
    column: Column
    job: str
    ours: Estimate | None
    published: Published | None
    judged: bool

    @property
    def mean(self) -> float | None:
        """Our mean in the unit of the column."""
        return self._shown(None if self.ours is None else self.ours.mean)

    @property
    def deviation(self) -> float | None:
        """Our sample standard deviation in the unit of the column; None for a single value."""
        return self._shown(None if self.ours is None or math.isnan(self.ours.deviation) else self.ours.deviation)

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in the unit of the column."""
        return None if self.mean is None or self.published is None else self.mean - self.published.mean

    @property
    def within(self) -> bool | None:
        """Whether the difference lies within the column's tolerance; None: there is nothing to judge."""
        if self.difference is None or self.column.tolerance is None or not self.judged:
            return None
        return abs(self.difference) <= self.column.tolerance

    def _shown(self, value: float | None) -> float | None:
        return None if value is None or self.column.measure is None else value * self.column.measure.scale


@dataclass(frozen=True)
class PaperTable:
    """A paper's table as runs of one kind fill it.

    Attributes:
        experiment: the name of its file.
        budget: the chosen one.
        changed: what the command line changed of the experiment.
        table: what the file says.
        cells: [row][column]; None where a column does not exist for a row.
        runs: job to the runs that stand for it.
    """

    experiment: str
    budget: str
    changed: tuple[str, ...]
    table: Table
    cells: Sequence[Sequence[Cell | None]]
    runs: Mapping[str, Sequence[FinishedRun]]

    @property
    def departs(self) -> bool:
        """Whether the runs are not by the paper's recipe."""
        return departs(self.budget, self.changed)

    @property
    def command(self) -> str:
        """The command line that makes such runs, but for where they are computed and kept."""
        budget = [] if self.budget == FULL else [f"budget={self.budget}"]
        return " ".join(["lmc", "-m", f"experiment={self.experiment}", *budget, *self.changed])

    @property
    def banner(self) -> str:
        """One line that says how far the runs are those of the paper."""
        sources = [line for line in self.changed if line.startswith(_SOURCES)]
        changes = [line for line in self.changed if line not in sources]
        parts = [f"budget={self.budget}" + ("" if self.departs else ", the recipe to the letter")]
        parts += [f"changed by hand: {' '.join(changes)}"] if changes else []
        parts += [f"images from {' '.join(sources)}"] if sources else []
        return ("NOT THE PAPER'S RECIPE: " if self.departs else "") + "; ".join(parts)

    @property
    def missing(self) -> list[str]:
        """The jobs that no run stands for."""
        return [job for job in dict.fromkeys(cell.job for cell in self.all_cells) if job not in self.runs]

    @property
    def all_cells(self) -> list[Cell]:
        """All cells, row by row."""
        return [cell for row in self.cells for cell in row if cell is not None]


def paper_tables(runs: Sequence[FinishedRun]) -> tuple[list[PaperTable], list[str]]:
    """Return the tables that `runs` belong to, and a line for everything that is wrong with them.

    Runs of different budgets, or with other changes on the command line, are never in one table.
    """
    kinds: dict[tuple[str, str, tuple[str, ...]], list[FinishedRun]] = {}
    for run in runs:
        node = run.settings.get("table")
        if node and node.get("stands_for"):
            kind = run.choices.get("experiment", ""), run.choices.get("budget", FULL), tuple(node["changed"])
            kinds.setdefault(kind, []).append(run)
    tables, problems = [], _of_many_kinds(list(kinds))
    for (experiment, budget, changed), own in kinds.items():
        try:
            table = read_table(own[-1].settings["table"], experiment)  # of the newest run
        except UserError as error:
            problems.append(str(error))
            continue
        assert table is not None
        problems += table.problems
        by_job: dict[str, list[FinishedRun]] = {}
        for run in own:
            for job in run.settings["table"]["stands_for"]:
                by_job.setdefault(job, []).append(run)
        if gone := [job for job in by_job if job not in table.jobs()]:
            problems.append(
                f"experiment={experiment}: the table has no cell for {gone[0]}; its runs are left out of it"
            )
            by_job = {job: runs for job, runs in by_job.items() if job not in gone}
        judged = not departs(budget, changed)
        cells = [[_cell(table, row, column, by_job, judged) for column in table.columns] for row in table.rows]
        tables.append(PaperTable(experiment, budget, changed, table, cells, by_job))
    return tables, problems


def departs(budget: str, changed: Sequence[str]) -> bool:
    """Tell whether runs of a budget, with these changes on the command line, are not by the paper's recipe."""
    return budget != FULL or any(not line.startswith(_SOURCES) for line in changed)


def _cell(
    table: Table, row: str, column: Column, runs: Mapping[str, Sequence[FinishedRun]], judged: bool
) -> Cell | None:
    if row not in column.rows:
        return None
    job = table.job(row, column)
    ours = None if column.measure is None else estimate(column.measure, runs.get(job, ()))
    return Cell(row, column, job, ours, column.published.get(row), judged)


def _of_many_kinds(kinds: Sequence[tuple[str, str, tuple[str, ...]]]) -> list[str]:
    problems = []
    for experiment in dict.fromkeys(name for name, *_ in kinds):
        own = [" ".join((f"budget={budget}", *changed)) for name, budget, changed in kinds if name == experiment]
        if len(own) > 1:
            problems.append(
                f"experiment={experiment}: runs of {len(own)} kinds ({'; '.join(own)}); their numbers do not belong in "
                "one cell, so each kind has a table of its own"
            )
    return problems
