"""What an experiment tells while it runs: to the terminal and to Weights & Biases at once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from lmc.results import PathPoint, Row, path_label
from lmc.tracker.mirror import Mirror
from lmc.tracker.terminal import Advance, Terminal


class Run:
    """One experiment being recorded; a context manager.

    An exception that leaves the `with` block marks the W&B run failed (exit code 1) and is not swallowed. No method
    raises because of W&B.
    """

    def __init__(self, terminal: Terminal, mirror: Mirror) -> None:
        self._terminal = terminal
        self._mirror = mirror
        self._rows: list[Row] = []
        self._points: list[PathPoint] = []

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._rows:
            self._mirror.call(lambda run: run.log({"rows": _row_table(self._rows)}))
        if self._points:
            self._mirror.call(lambda run: run.log(_path_media(self._points)))
        self._mirror.finish(0 if kind is None else 1)

    @contextmanager
    def stage(self, label: str, total: int | None) -> Iterator[Advance]:
        """Show and record a stage of `total` steps (None: not known).

        Yields a function to be called once a step with the newest metrics; they become the history "<label>/<metric>"
        with a step axis of its own, "<label>/step", which counts from 1.
        """
        axis, step = f"{label}/step", 0
        self._mirror.call(lambda run: run.define_metric(axis, hidden=True))
        self._mirror.call(lambda run: run.define_metric(f"{label}/*", step_metric=axis))
        with self._terminal.stage(label, total) as show:

            def advance(metrics: Mapping[str, float]) -> None:
                nonlocal step
                step += 1
                record = {axis: step} | {f"{label}/{name}": value for name, value in metrics.items()}
                self._mirror.call(lambda run: run.log(record))
                show(metrics)

            yield advance

    def rows(self, rows: Sequence[Row]) -> None:
        """Record results: each a summary value named by `row_name`, all of them a table when the run ends."""
        self._rows.extend(rows)
        values = {row_name(row): row.value for row in rows}
        self._mirror.call(lambda run: run.summary.update(values))

    def path(self, points: Sequence[PathPoint]) -> None:
        """Record measured paths: a table of all points and charts of loss and accuracy against t when the run ends."""
        self._points.extend(points)

    def figure(self, name: str, png: Path) -> None:
        """Record the image file `png` under `name`."""

        def log_image(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(png))})

        self._mirror.call(log_image)


def row_name(row: Row) -> str:
    """Return the name of a row's number in the summary, for example "aligned/0-1/train/loss/barrier"."""
    pair = path_label(row.path, row.pair) if row.path else _joined(row.pair)
    parts = [pair, row.split, row.metric, row.what, *(f"{name}={value}" for name, value in row.more.items())]
    return "/".join(part for part in parts if part)


def _row_table(rows: Sequence[Row]) -> Any:
    return _table([{**row.as_dict(), "pair": _joined(row.pair)} for row in rows])


def _path_media(points: Sequence[PathPoint]) -> dict[str, Any]:
    import wandb

    lines = [{"line": f"{path_label(p.path, p.pair)} {p.split}", **asdict(p), "pair": _joined(p.pair)} for p in points]
    table = _table(lines)
    return {
        "path": table,
        "path_loss": wandb.plot.line(table, "t", "loss", stroke="line", title="loss (nats) along the path"),
        "path_accuracy": wandb.plot.line(table, "t", "accuracy", stroke="line", title="accuracy along the path"),
    }


def _table(entries: Sequence[Mapping[str, Any]]) -> Any:
    """Return a `wandb.Table` of `entries`; a field that only some of them have is empty in the others."""
    import wandb

    columns: list[str | int] = list(dict.fromkeys(name for entry in entries for name in entry))
    return wandb.Table(columns=columns, data=[[entry.get(str(name)) for name in columns] for entry in entries])


def _joined(pair: Sequence[int]) -> str:
    return "-".join(map(str, pair))
