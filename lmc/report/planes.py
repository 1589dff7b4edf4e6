"""Measured planes: which files of a run folder hold them, and what is in them."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmc.errors import UserError
from lmc.report.lines import Metric

_NAME = re.compile(r"(?P<stem>.+_(?P<labels>\d+(-\d+)+))_plane\.csv")


@dataclass(frozen=True)
class MeasuredPlane:
    """Loss and accuracy on a rectangular grid of the plane through three networks.

    Attributes:
        stem: what its files are called, "plane_0-1".
        pair: the networks that were looked at, "0-1".
        networks: name, x and y of each of the three.
        curve: (points, 2) x and y along the curve that joins the first two; no points if there is none.
        x: (columns,) increasing.
        y: (rows,) increasing.
        loss: split to (rows, columns) in nats.
        accuracy: split to (rows, columns), fraction.
    """

    stem: str
    pair: str
    networks: tuple[tuple[str, float, float], ...]
    curve: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    loss: Mapping[str, NDArray[np.float64]]
    accuracy: Mapping[str, NDArray[np.float64]]

    def of(self, metric: Metric) -> Mapping[str, NDArray[np.float64]]:
        """Return one metric, split to (rows, columns)."""
        return self.loss if metric == "loss" else self.accuracy


def plane_files(folder: Path) -> Iterator[Path]:
    """Yield the files of `folder` that `read_plane` reads, in the order of their names."""
    yield from sorted(path for path in folder.glob("*_plane.csv") if _NAME.fullmatch(path.name))


def read_plane(path: Path) -> MeasuredPlane:
    """Read <analysis>_<labels>_plane.csv and the .json beside it, as the analysis `plane` leaves them.

    Raises:
        UserError: one of them is missing or damaged; names the file, and the line.
    """
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise UserError(f"{path} is no plane; expected <analysis>_<labels>_plane.csv")
    labels = name["labels"].split("-")
    places, curve, shape, through = _geometry(path.with_suffix(".json"))
    third = "middle" if through == "middle" else labels[2]
    values: dict[str, list[tuple[float, float, float, float]]] = {}
    number = 1
    with path.open(encoding="utf-8", newline="") as file:
        for number, entry in enumerate(csv.DictReader(file), 2):
            try:
                point = (float(entry["x"]), float(entry["y"]), float(entry["loss"]), float(entry["accuracy"]))
                values.setdefault(entry["split"], []).append(point)
                int(entry["examples"])  # the last field: a line that breaks off has none
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}: not a whole point ({error}); run the experiment again"
                ) from None
    grids = {split: np.array(points) for split, points in values.items()}
    rows, columns = shape
    if not grids or any(len(grid) != rows * columns for grid in grids.values()):
        raise UserError(f"{path}, line {number}: is not a grid of {columns} x {rows} points; run the experiment again")
    grids = {split: grid.reshape(rows, columns, 4) for split, grid in grids.items()}
    first = next(iter(grids.values()))
    return MeasuredPlane(
        stem=name["stem"],
        pair=name["labels"],
        networks=tuple((label, *place) for label, place in zip([*labels[:2], third], places, strict=True)),
        curve=curve,
        x=first[0, :, 0],
        y=first[:, 0, 1],
        loss={split: grid[:, :, 2] for split, grid in grids.items()},
        accuracy={split: grid[:, :, 3] for split, grid in grids.items()},
    )


def _geometry(path: Path) -> tuple[list[tuple[float, float]], NDArray[np.float64], tuple[int, int], str]:
    """The places of the networks, the curve, (rows, columns), and what the plane goes through."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        places = [(float(place["x"]), float(place["y"])) for place in content["networks"]]
        curve = [(float(place["x"]), float(place["y"])) for place in content["curve"]]
        columns, rows = map(int, content["grid"])
        return places, np.array(curve).reshape(-1, 2), (rows, columns), str(content["through"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged ({error!r}); run the experiment again") from None
