"""Many networks measured, one process for each, into a table that can be continued."""

import contextlib
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from lmc.errors import UserError, refusal
from lmc.inspection.markdown import as_markdown
from lmc.inspection.measure import Task, measure
from lmc.inspection.sources.request import first_line

log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass
class _Worker:
    """A process that measures one network.

    Attributes:
        task: what it measures.
        process: where.
        pipe: through which its row comes, as far as it has got, again and again; then its end.
        started: when it began.
        row: the latest.
    """

    task: Task
    process: ForkServerProcess
    pipe: Connection
    started: float
    row: Row | None = None


class Survey:
    """A table of networks, and the rows it is made of beside it in a .jsonl: nothing that was computed is lost.

    Args:
        out: the Markdown file; the rows are in the .jsonl of the same name.
        common: what all networks are measured with; its `spec` is replaced.
        limit: seconds for a network, after which it is given up.
        jobs: networks at a time.
        command: the command line, which the table begins with.

    Raises:
        UserError: `out` cannot be written.
    """

    def __init__(self, out: Path, common: Task, *, limit: float = 900, jobs: int = 1, command: str = "") -> None:
        if out.suffix != ".md":
            raise UserError(f"--out {out}: the table is Markdown; give a name that ends in .md")
        self.out, self.rows_file = out, out.with_suffix(".jsonl")
        self._common, self._limit, self._jobs, self._command = common, limit, jobs, command
        self._packages: list[str] = []
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            self.rows_file.touch()
        except OSError as error:
            raise UserError(f"--out {out}: {refusal(error) or error}") from None

    def run(self, names: str, retry: bool = False) -> list[Row]:
        """Measure the networks in `names` that have no row yet, and write the table after each; return all rows.

        Args:
            names: as for `expand`.
            retry: measure those again that failed or were not finished.
        """
        specs = expand(names)
        done = {row["network"] for row in self.rows() if not (retry and row.keys() & {"failed", "unfinished"})}
        waiting = [replace(self._common, spec=spec) for spec in specs if spec not in done]
        if len(waiting) < len(specs):
            log.info("%d of %d networks are in %s already", len(specs) - len(waiting), len(specs), self.rows_file)
        sources = {task.spec.partition(":")[0] for task in waiting}
        self._packages = sorted(sources & {"torchvision", "timm", "transformers"})
        for row in self._measured(waiting):
            self._append(row)
            self._write_table(specs)
        self._write_table(specs)
        return self.rows()

    def rows(self) -> list[Row]:
        """Return the rows that were measured with these settings, the last of each network; a torn line is skipped."""
        found: dict[str, Row] = {}
        for line in self.rows_file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the process was killed while it wrote
                continue
            if row.get("measured_with") == self._common.identity():
                found[row["network"]] = row
        return list(found.values())

    def _append(self, row: Row) -> None:
        whole = self.rows_file.read_bytes()
        with self.rows_file.open("a", encoding="utf-8") as file:
            start = "\n" if whole and not whole.endswith(b"\n") else ""
            file.write(f"{start}{json.dumps(row)}\n")
            file.flush()
            os.fsync(file.fileno())

    def _write_table(self, specs: Sequence[str]) -> None:
        place = {spec: number for number, spec in enumerate(specs)}
        rows = sorted(self.rows(), key=lambda row: place.get(row["network"], len(place)))
        beside = self.out.with_suffix(".md.part")
        beside.write_text(as_markdown(rows), encoding="utf-8")
        beside.replace(self.out)

    def _measured(self, tasks: Sequence[Task]) -> Iterator[Row]:
        """Yield the row of each task as it comes; at most `jobs` run at a time."""
        waiting, running = list(tasks), list[_Worker]()
        try:
            while waiting or running:
                while waiting and len(running) < self._jobs:
                    running.append(self._start(waiting.pop(0)))
                wait([worker.pipe for worker in running], timeout=0.2)
                for worker in list(running):
                    row = self._row_of(worker)
                    if row is not None:
                        running.remove(worker)
                        yield row
        finally:
            for worker in running:
                worker.process.kill()
                worker.process.join()

    def _start(self, task: Task) -> _Worker:
        context = multiprocessing.get_context("forkserver")  # its children start in no time: torch is imported once
        context.set_forkserver_preload(["lmc.inspection.measure", "torch.export", *self._packages])
        ours, theirs = context.Pipe()
        threads = max(1, (os.cpu_count() or 1) // self._jobs)
        process = context.Process(target=_work, args=(task, theirs, threads), daemon=True)
        process.start()
        theirs.close()
        log.info("%s ...", task.spec)
        return _Worker(task, process, ours, time.monotonic())

    def _row_of(self, worker: _Worker) -> Row | None:
        """The row of a worker that has ended or is given up, else None."""
        spent = time.monotonic() - worker.started
        failure = ""
        try:
            while worker.pipe.poll():
                worker.row = worker.pipe.recv()
        except EOFError:
            worker.process.join()
            failure = _end(worker.process.exitcode)
        else:
            if spent <= self._limit:
                return None
            worker.process.kill()
            failure = f"given up after {self._limit:g} s"
        worker.process.join()
        worker.pipe.close()
        result = worker.row or {"failed": failure}
        if failure and "failed" not in result:
            result["unfinished"] = failure
        log.info("%s: %s", worker.task.spec, result.get("failed") or failure or f"done in {spent:.0f} s")
        return {
            "network": worker.task.spec,
            "measured_with": worker.task.identity(),
            "command": self._command,
            **result,
        }


def expand(names: str) -> list[str]:
    """Return the networks that `names` lists, separated by commas; a prefix holds for the names after it.

    "torchvision" stands for all of torchvision's classification networks; "timm:a,b" for timm:a and timm:b.

    Raises:
        UserError: a name is empty.
    """
    found: list[str] = []
    prefix = ""
    for name in map(str.strip, names.split(",")):
        if name == "torchvision":
            from lmc.inspection.sources.torchvision import names as builders

            found += [f"torchvision:{builder}" for builder in builders()]
            continue
        if not name:
            raise UserError(f"--survey {names}: a name is empty; write torchvision:resnet18,vgg11,timm:convnext_atto")
        if ":" in name:
            prefix = name.partition(":")[0] + ":"
        found.append(name if ":" in name else prefix + name)
    return list(dict.fromkeys(found))


def _end(status: int | None) -> str:
    """Why a process ended, in words; empty if it ended well."""
    if status == 0:
        return ""
    if status is not None and status < 0:
        return f"the process was killed by signal {-status}" + (" (out of memory?)" if status == -9 else "")
    return f"the process ended with status {status}"


def _end_with(pipe: Connection) -> None:
    """End this process when the one at the other end of the pipe is gone, however it went."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()  # nothing is ever sent this way
    os._exit(1)


def _work(task: Task, pipe: Connection, threads: int) -> None:
    """Measure in a process of its own; every failure but a crash becomes a row."""
    import torch

    os.dup2(sys.stderr.fileno(), 1)  # what a network prints is no result
    logging.basicConfig(stream=sys.stderr, level=logging.ERROR)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    row: Row = {}
    try:
        for row in measure(task):
            pipe.send(row)
    except (UserError, MemoryError) as error:
        pipe.send({**row, "unfinished" if row else "failed": str(error) or "out of memory"})
    except Exception as error:
        log.exception("%s", task.spec)
        pipe.send({**row, "unfinished" if row else "failed": first_line(error)})
    pipe.close()
