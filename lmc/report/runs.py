"""Finding the run folders of a sweep and reading what they hold; a damaged one costs a line, not the report."""

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmc.errors import UserError
from lmc.report.planes import MeasuredPlane, plane_files, read_plane
from lmc.results import (
    PATH_FILE,
    RESULTS_FILE,
    SUMMARY_FILE,
    PathPoint,
    Row,
    group_paths,
    path_label,
    read_matchings,
    read_path,
    read_rows,
)

# Folders of a run or a store that hold many files and no runs.
_NOT_SEARCHED = frozenset({".hydra", ".submitit", "wandb"})
_STORE_MARK = "locks"


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run that ended well.

    Attributes:
        folder: where it lies.
        settings: its resolved configuration, nested.
        choices: config group (as its place in the configuration, "training.schedule") to the chosen option.
        rows: its results.
        points: its measured paths; empty if it measured none.
        matchings: pair of networks to group to (units,), which unit of the moving network is matched with each of the
            fixed one; only of pairs that are joined by a permutation.
        planes: the measured planes.
        made: versions, commit, hardware, and the seconds that each artifact took; empty in runs of older versions.
    """

    folder: Path
    settings: Mapping[str, Any]
    choices: Mapping[str, str]
    rows: Sequence[Row]
    points: Sequence[PathPoint]
    matchings: Mapping[tuple[int, ...], Mapping[str, NDArray[np.int64]]] = field(default_factory=dict)
    planes: Sequence[MeasuredPlane] = ()
    made: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Collection:
    """What was found: runs that ended, and one line for everything that is missing or damaged."""

    runs: list[FinishedRun] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def collect(folders: Iterable[Path]) -> Collection:
    """Read every run below `folders`, in the natural order of their names (job 2 before job 10).

    Raises:
        UserError: one of the folders does not exist.
    """
    found = Collection()
    seen: set[Path] = set()
    for root in folders:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; give the folder of a run or of a sweep")
        for folder in sorted(_run_folders(root), key=_natural):
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            if not (folder / SUMMARY_FILE).is_file():
                found.problems.append(f"{folder}: did not end{_overrides(folder)}")
                continue
            try:
                found.runs.append(_read(folder, found.problems))
            except (UserError, OSError) as error:
                found.problems.append(str(error))
            except UnicodeDecodeError as error:
                found.problems.append(f"{folder}: a results file is damaged ({error}); run the experiment again")
    return found


def _run_folders(root: Path) -> Iterable[Path]:
    for name, below, files in os.walk(root):
        if SUMMARY_FILE in files or ".hydra" in below:
            yield Path(name)
            below.clear()
        elif _STORE_MARK in below:
            below.clear()
        else:
            below[:] = [folder for folder in below if folder not in _NOT_SEARCHED]


def _natural(folder: Path) -> list[tuple[int, str]]:
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", str(folder))]


def _overrides(folder: Path) -> str:
    """The overrides of a job, for recognising it: " (alignment=none seeds=[0,1])"."""
    try:
        lines = (folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    given = " ".join(line.removeprefix("- ") for line in lines if line.startswith("- "))
    return f" ({given})" if given else ""


def _read(folder: Path, problems: list[str]) -> FinishedRun:
    settings, choices, made, promised = _read_summary(folder / SUMMARY_FILE)
    results = folder / RESULTS_FILE
    if not results.is_file():
        raise UserError(f"{results}: is missing; run the experiment again")
    rows = read_rows(results)
    if len(rows) < promised:
        raise UserError(f"{results}, line {len(rows)}: ends early, {promised} rows were written; run it again")
    points: list[PathPoint] = []
    if (folder / PATH_FILE).is_file():
        try:
            points = read_whole_path(folder / PATH_FILE)
        except (UserError, csv.Error) as error:  # the table can do without the curves
            problems.append(str(error))
    try:
        matchings = read_matchings(folder)
    except UserError as error:  # the table can do without them too
        problems.append(str(error))
        matchings = {}
    planes = []
    for path in plane_files(folder):
        try:
            planes.append(read_plane(path))
        except (UserError, csv.Error) as error:
            problems.append(str(error))
    return FinishedRun(
        folder=folder,
        settings=settings,
        choices=choices,
        rows=rows,
        points=points,
        matchings=matchings,
        planes=planes,
        made=made,
    )


def read_whole_path(path: Path) -> list[PathPoint]:
    """Read a path file and check that every path in it runs from 0 to 1.

    Raises:
        UserError: a line is incomplete, or the file ends before a path does; names file and line.
    """
    points = read_path(path)
    for (pair, name, split), members in group_paths(points):
        if members[0].t != 0 or members[-1].t != 1:
            raise UserError(
                f"{path}, line {len(points) + 1}: {path_label(name, pair)} on {split} data does not run from "
                "t=0 to t=1; run the experiment again"
            )
    return points


def _read_summary(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str], Mapping[str, Any], int]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        choices = {_place(group): str(name) for group, name in document["choices"].items() if name is not None}
        return dict(document["settings"]), choices, dict(document.get("made", {})), len(document["rows"])
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not a whole summary ({error.msg}); run it again") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}, line 1: not a summary of a run ({error!r}); run the experiment again") from None


def _place(group: str) -> str:
    """Where the choice of a group stands in the configuration: "training/schedule@curve.x" is at "curve.x"."""
    name, _, package = group.partition("@")
    return package or name.replace("/", ".")
