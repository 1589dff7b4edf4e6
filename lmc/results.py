"""What a measurement is and how it is written: rows (one number each) and raw paths (loss and accuracy at every t).

Needs numpy alone, so that reports are made without torch.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as serialise

from lmc.errors import UserError

VARIANCE = "variance_ratio"
"""What is left, in the middle of a path, of the variance of a layer's pre-activations: before and after correction."""

ANALYSIS = "analysis"
"""Beside a number that an analysis found: which one."""

PathName = Literal["aligned", "unaligned"]
RESULTS_FILE = "results.jsonl"
PATH_FILE = "path.csv"
SUMMARY_FILE = "summary.json"
MATCHING_FILE = "matching_{}.safetensors"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number with everything needed to understand it.

    Attributes:
        what: the quantity, a name of `path_statistics` or another evaluation's.
        path: which path it was measured on; None where no path is involved (an endpoint).
        pair: the seeds (or file numbers) of the networks involved, fixed first.
        split: "train", "validation" or "test"; None where no data is involved.
        metric: "loss", "error", "accuracy", "objective", ...
        unit: "nats", "fraction", "seconds", ...
        value: the number itself; never clipped.
        examples: how many examples it was measured on (0 where no data is involved).
        key: the key of the artifact it comes from.
        more: further fields of an evaluation; written beside the others.
    """

    what: str
    path: str | None
    pair: tuple[int, ...]
    split: str | None
    metric: str
    unit: str
    value: float
    examples: int
    key: str
    more: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the row as one flat dict, ready for JSON."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "more"}
        return {**plain, "pair": list(self.pair), **self.more}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Row":
        """Inverse of `as_dict`; unknown fields go to `more`."""
        known = {f.name for f in fields(cls)} - {"more"}
        own = {name: plain[name] for name in known}
        return cls(**{**own, "pair": tuple(plain["pair"])}, more={k: v for k, v in plain.items() if k not in known})


@dataclass(frozen=True, kw_only=True)
class PathPoint:
    """One point of a measured path: the loss and accuracy of the network at `t` on one split.

    Attributes:
        pair: (fixed, moving) seeds.
        path: "aligned" or "unaligned".
        split: "train" or "test".
        t: position on the path, 0 at the fixed network and 1 at the moving one.
        loss: mean cross-entropy in nats.
        accuracy: fraction of examples classified correctly.
        distance: length of the path from t = 0 to here, in weight space (Euclidean).
        examples: how many examples were measured.
    """

    pair: tuple[int, int]
    path: str
    split: str
    t: float
    loss: float
    accuracy: float
    distance: float
    examples: int


def path_statistics(t: ArrayLike, values: ArrayLike, distance: ArrayLike | None = None) -> dict[str, float]:
    """Return every barrier and summary of one measured path. Nothing is clipped: a negative barrier is shown as such.

    Args:
        t: (points,) increasing, from 0 to 1.
        values: (points,) the loss or error at each t.
        distance: (points,) arc length from t = 0 in weight space; without it `t` itself is taken (a straight line).

    Returns:
        barrier: max_t L(t) - [(1-t) L(0) + t L(1)] (Entezari et al. 2022, Eq. 1; Frankle; Sharma).
        barrier_mean_endpoints: max_t L(t) - (L(0) + L(1)) / 2 (Ainsworth et al. 2023, Def. 2.2).
        barrier_midpoint: L(1/2) - (L(0) + L(1)) / 2 (Jordan et al. 2023); present only if 1/2 is a point of the grid.
        path_midpoint: L(1/2), likewise.
        path_min, path_mean, path_max: over the points.
        path_length_mean: mean weighted by arc length, trapezoidal (Garipov et al. 2018).

    Raises:
        ValueError: the arrays differ in length, or t does not run from 0 to 1.
    """
    ts, ls = np.asarray(t, dtype=np.float64), np.asarray(values, dtype=np.float64)
    along = ts if distance is None else np.asarray(distance, dtype=np.float64)
    if ts.ndim != 1 or ts.shape != ls.shape or ts.shape != along.shape:
        raise ValueError(f"t, values and distance differ in shape: {ts.shape}, {ls.shape}, {along.shape}")
    if len(ts) < 2 or ts[0] != 0 or ts[-1] != 1 or np.any(np.diff(ts) <= 0):
        raise ValueError("t must increase from 0 to 1")
    mean_of_ends = (ls[0] + ls[-1]) / 2
    steps = np.diff(along)
    if steps.sum() <= 0:  # two equal networks: the path has no length, so every point weighs the same
        steps = np.diff(ts)
    found = {
        "barrier": float(np.max(ls - ((1 - ts) * ls[0] + ts * ls[-1]))),
        "barrier_mean_endpoints": float(np.max(ls) - mean_of_ends),
        "path_min": float(ls.min()),
        "path_mean": float(ls.mean()),
        "path_max": float(ls.max()),
        "path_length_mean": float(np.sum(0.5 * (ls[1:] + ls[:-1]) * steps) / steps.sum()),
    }
    middle = np.flatnonzero(np.isclose(ts, 0.5, atol=1e-9))
    if len(middle):
        found["barrier_midpoint"] = float(ls[middle[0]] - mean_of_ends)
        found["path_midpoint"] = float(ls[middle[0]])
    return found


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write `rows` as a JSON-lines file, one number a line."""
    path.write_text("".join(json.dumps(row.as_dict()) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[Row]:
    """Read a file that `write_rows` wrote.

    Raises:
        UserError: a line is not a whole row (a file cut in half); names the line.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(Row.from_dict(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: not a whole result row ({error}); run the experiment again"
            ) from None
    return rows


def write_path(path: Path, points: Sequence[PathPoint]) -> None:
    """Write raw path points as CSV with a header; floats keep their full precision."""
    names = [f.name for f in fields(PathPoint)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for point in points:
            values = {name: getattr(point, name) for name in names}
            writer.writerow(["-".join(map(str, point.pair)) if n == "pair" else values[n] for n in names])


def read_path(path: Path) -> list[PathPoint]:
    """Read a file that `write_path` wrote.

    Raises:
        UserError: a line is incomplete; names the line.
    """
    points = []
    with path.open(encoding="utf-8", newline="") as file:
        for number, entry in enumerate(csv.DictReader(file), 2):
            try:
                first, second = (int(part) for part in entry["pair"].split("-"))
                numbers = {name: float(entry[name]) for name in ("t", "loss", "accuracy", "distance")}
                points.append(
                    PathPoint(
                        pair=(first, second),
                        path=entry["path"],
                        split=entry["split"],
                        examples=int(entry["examples"]),
                        **numbers,
                    )
                )
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{path}, line {number}: not a whole path point ({error}); run the experiment again"
                ) from None
    return points


def group_paths(points: Iterable[PathPoint]) -> Iterator[tuple[tuple[tuple[int, int], str, str], list[PathPoint]]]:
    """Yield ((pair, path, split), its points in the order of t) for every measured path among `points`."""
    groups: dict[tuple[tuple[int, int], str, str], list[PathPoint]] = {}
    for point in points:
        groups.setdefault((point.pair, point.path, point.split), []).append(point)
    for name, members in groups.items():
        yield name, sorted(members, key=lambda point: point.t)


def path_rows(points: Iterable[PathPoint], keys: Mapping[str, str]) -> list[Row]:
    """Return a row for every statistic of every path among `points`, for loss and for error.

    Args:
        points: raw points of any number of paths.
        keys: path name ("aligned", "unaligned") and pair, joined as "aligned/0-1", to the key of its artifact.
    """
    rows: list[Row] = []
    for (pair, path, split), members in group_paths(points):
        t, distance = [p.t for p in members], [p.distance for p in members]
        measured = {
            "loss": ([p.loss for p in members], "nats"),
            "error": ([1 - p.accuracy for p in members], "fraction"),
        }
        for metric, (values, unit) in measured.items():
            for what, value in path_statistics(t, values, distance).items():
                found = {metric: (unit, value)}
                key = keys[path_label(path, pair)]
                rows += metric_rows(what, found, path, pair, split, members[0].examples, key)
    return rows


def metric_rows(
    what: str,
    values: Mapping[str, tuple[str, float]],
    path: str | None,
    labels: tuple[int, ...],
    split: str | None,
    examples: int,
    key: str,
) -> Iterator[Row]:
    """Yield one row for each metric of `values`, a mapping from metric to (unit, value)."""
    for metric, (unit, value) in values.items():
        yield Row(
            what=what,
            path=path,
            pair=labels,
            split=split,
            metric=metric,
            unit=unit,
            value=value,
            examples=examples,
            key=key,
        )


def path_label(path: str, pair: Sequence[int]) -> str:
    """Return the name of one measured path, for example "aligned/0-1"."""
    return f"{path}/{'-'.join(map(str, pair))}"


def write_matching(folder: Path, pair: Sequence[int], matching: Mapping[str, Sequence[int]]) -> None:
    """Write which unit is matched with which, as safetensors: group to (units,) int64, the moving network's unit."""
    name = MATCHING_FILE.format("-".join(map(str, pair)))
    (folder / name).write_bytes(serialise({group: np.array(units, np.int64) for group, units in matching.items()}))


def read_matchings(folder: Path) -> dict[tuple[int, ...], dict[str, NDArray[np.int64]]]:
    """Read what `write_matching` wrote into a folder: pair to matching.

    Raises:
        UserError: a file is damaged; names it.
    """
    found = {}
    for path in sorted(folder.glob(MATCHING_FILE.format("*"))):
        try:
            pair = tuple(int(part) for part in path.stem.partition("_")[2].split("-"))
            found[pair] = load_file(path)
        except (ValueError, SafetensorError) as error:
            raise UserError(f"{path} is damaged ({error}); run the experiment again") from None
    return found


def write_summary(
    path: Path, settings: Mapping[str, Any], choices: Mapping[str, str], rows: Sequence[Row], made: Mapping[str, Any]
) -> None:
    """Write a run as one JSON document; written last, it marks a run that ended well.

    Args:
        path: the file to write.
        settings: the resolved configuration, nested.
        choices: config group to the name of the chosen option ("alignment": "weight_matching").
        rows: every row of results.jsonl.
        made: versions, commit, hardware, and the seconds that each artifact took.
    """
    document = {"settings": settings, "choices": choices, "made": made, "rows": [row.as_dict() for row in rows]}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (n - 1); the deviation of a single value is NaN, not 0."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan
