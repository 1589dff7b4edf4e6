"""Progress for the person at the keyboard: a bar on a terminal, a few log lines anywhere else."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

log = logging.getLogger(__name__)

Advance = Callable[[Mapping[str, float]], None]
_LINES_PER_STAGE = 4


class Terminal:
    """Shows how far each stage is.

    On a terminal a bar that disappears when its stage ends; elsewhere a log line at each quarter of a stage. The end
    of every stage is logged in both cases, so that the log file tells the same story.

    Args:
        stream: where the bar is drawn; standard output if None.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._progress: Any = None

    @contextmanager
    def stage(self, label: str, total: int | None) -> Iterator[Advance]:
        """Show a stage of `total` steps (None: not known).

        Calling what is yielded with the newest metrics advances it by one.
        """
        started, done = time.perf_counter(), 0
        newest: Mapping[str, float] = {}
        with self._bar(label, total) if self._stream.isatty() else _quarters(label, total) as show:

            def advance(metrics: Mapping[str, float]) -> None:
                nonlocal done, newest
                done, newest = done + 1, dict(metrics)
                show(done, newest)

            yield advance
        if done:  # a stage without steps has nothing to tell
            log.info("%s: %s in %.1f s%s", label, _steps(done), time.perf_counter() - started, _text(newest, ", "))

    @contextmanager
    def _bar(self, label: str, total: int | None) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
        """Add a bar to the live display, which begins with the outermost stage and ends with it."""
        outermost = self._progress is None
        if outermost:
            self._progress = _make_progress(self._stream)
        progress = self._progress
        if not outermost:
            yield from _drawn(progress, label, total)
            return
        with progress, _logging_through_the_bar(self._stream):
            try:
                yield from _drawn(progress, label, total)
            finally:
                self._progress = None


def _make_progress(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[newest]}", markup=False),
    )
    own = stream is sys.stdout  # rich may take standard output over only if that is where it draws
    console = Console(file=stream, force_terminal=True)
    return Progress(*columns, console=console, transient=True, redirect_stdout=own, redirect_stderr=own)


def _drawn(progress: Any, label: str, total: int | None) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    task = progress.add_task(label, total=total, newest="")
    try:
        yield lambda done, newest: progress.update(task, completed=done, newest=_text(newest))
    finally:
        progress.remove_task(task)


@contextmanager
def _quarters(label: str, total: int | None) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Log at 1/4, 2/4 and 3/4 of the stage; its end is logged by the caller."""
    parts = range(1, _LINES_PER_STAGE)
    marks = set() if total is None else {-(-total * part // _LINES_PER_STAGE) for part in parts} - {0, total}

    def show(done: int, newest: Mapping[str, float]) -> None:
        if done in marks:
            log.info("%s: %d/%d%s", label, done, total, _text(newest, ", "))

    yield show


@contextmanager
def _logging_through_the_bar(stream: TextIO) -> Iterator[None]:
    """Let log lines for `stream` go through the live display, which prints them above the bar instead of into it.

    Log handlers hold the stream they were made with, so rich's replacement of `sys.stdout` alone does not reach them.
    """
    proxy = sys.stdout
    moved = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream and proxy is not stream
    ]
    for handler in moved:
        handler.setStream(proxy)
    try:
        yield
    finally:
        for handler in moved:
            handler.setStream(stream)


def _steps(done: int) -> str:
    return "1 step" if done == 1 else f"{done} steps"


def _text(metrics: Mapping[str, float], before: str = "") -> str:
    text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return before + text if text else ""
