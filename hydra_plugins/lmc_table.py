"""Hydra's question which jobs a sweep has, answered by the table of an experiment file.

Hydra takes sweepers only from the namespace `hydra_plugins`, and imports all of it at every start: nothing heavy here.
What the jobs are is decided in `lmc.experiment`.
"""

import logging
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

log = logging.getLogger("lmc.experiment")


class TableSweeper(BasicSweeper):
    """Hydra's own sweeper, with a job for every cell of the experiment's table where there is one.

    The `params` are repetitions of all jobs (seeds); as always the command line wins over them.
    """

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs; `arguments` is the command line."""
        self._arguments = arguments
        return super().sweep(arguments)

    # Hydra's is a static method of the same arguments, and called on the object.
    def split_arguments(  # type: ignore[override]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Return batches of jobs, each of them a list of overrides."""
        from lmc.experiment.sweep import jobs_of

        assert self.config is not None
        jobs = jobs_of(self.config, [f"{key}={value}" for key, value in self.params.items()], self._arguments)
        if jobs is None:
            return BasicSweeper.split_arguments(overrides, max_batch_size)
        return list(BasicSweeper.split_overrides_to_chunks(jobs, max_batch_size))
