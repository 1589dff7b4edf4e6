"""The Hydra callback that writes the report of a sweep when its last job has ended."""

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lmc.errors import UserError

log = logging.getLogger(__name__)

_pending: list[Path] = []


class SweepReport(Callback):
    """Writes the report into the sweep's folder.

    Hydra leaves `on_multirun_end` out when a job has failed (its sweeper raises the job's error first), so the folder
    is remembered at the start and the entry point calls `write_pending` when Hydra has come to an end in any way.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the sweep's folder."""
        _pending.append(Path(str(config.hydra.sweep.dir)).absolute())

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the report of a sweep of which every job has ended well."""
        write_pending()


def pending() -> list[Path]:
    """Return the folders of the sweeps that were started and have no report yet."""
    return list(_pending)


def write_pending() -> None:
    """Write the report of every sweep that was started and has none yet; does nothing where no sweep was started.

    A report that cannot be written is a warning: the sweep's own results are there, and `lmc-report` can try again.
    """
    while _pending:
        folder = _pending.pop()
        if not folder.is_dir():  # stopped before the first job
            continue
        from lmc.report.sweep import write_sweep

        try:
            log.info("report of the sweep\n%s", write_sweep([folder], folder))
        except (UserError, OSError) as error:
            log.warning("no report of the sweep: %s", error)
