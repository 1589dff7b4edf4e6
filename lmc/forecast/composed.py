"""The jobs that a command line stands for, each composed as it would be run."""

from collections.abc import Iterator, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import RunMode

from lmc import command_line, config
from lmc.experiment.jobs import parse
from lmc.experiment.sweep import jobs_of


def composed_jobs(arguments: Sequence[str]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yield overrides and settings of every job that `lmc -m ARGUMENTS` would run.

    Raises:
        UserError: the experiment's table cannot be used, a value is missing, or a choice is none.
        HydraException: what is given cannot be composed.
    """
    config.register()
    command_line.check_choices(arguments)
    with initialize_config_dir(config.conf_dir(), version_base="1.3"):
        single = [line for line, one in zip(arguments, parse(arguments), strict=True) if not one.is_sweep_override()]
        whole = compose("config", single, return_hydra_config=True)
        swept = whole.hydra.mode == RunMode.MULTIRUN or len(single) < len(arguments)
        params = whole.hydra.sweeper.params or {} if swept else {}
        repeated = [f"{key}={value}" for key, value in params.items()]
        jobs = jobs_of(whole, repeated, arguments) if swept else None
        if jobs is None:
            jobs = BasicSweeper.split_arguments(parse([*repeated, *arguments]), None)[0]
        for overrides in jobs:
            yield overrides, config.plain(compose("config", overrides))
