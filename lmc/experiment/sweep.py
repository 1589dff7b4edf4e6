"""The jobs of a sweep, as lists of overrides."""

import logging
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from omegaconf import DictConfig, OmegaConf

from lmc.errors import UserError
from lmc.experiment.jobs import changes, chosen_jobs, parse
from lmc.experiment.table import read_table

log = logging.getLogger(__name__)


def jobs_of(composed: DictConfig, params: Sequence[str], arguments: Sequence[str]) -> list[list[str]] | None:
    """Return the overrides of every job of the experiment's table; None if the experiment says nothing of its jobs.

    A budget can make several jobs of a table the same: one is run and stands for all of them. An experiment without a
    table can still say what a budget puts over its jobs.

    Args:
        composed: the configuration of the sweep, with the node `hydra`.
        params: what the sweep repeats, as overrides: the settings of the sweeper.
        arguments: the command line.

    Raises:
        UserError: the table cannot be used, or the command line leaves nothing of it.
    """
    choices = composed.hydra.runtime.choices
    name, budget = choices.get("experiment"), choices.get("budget")
    if composed.table is None:
        return None
    plain = OmegaConf.to_container(composed.table, resolve=True)
    assert isinstance(plain, dict)
    node: dict[str, Any] = {str(key): value for key, value in plain.items()}
    table = read_table(node, name)
    if table is None:
        return BasicSweeper.split_arguments(parse([*params, *node.get(budget or "", ()), *arguments]), None)[0]
    for problem in table.problems:
        log.warning("%s", problem)
    chosen, for_all = chosen_jobs(table, node["only"], budget, arguments)
    if not chosen:
        raise UserError(f"experiment={name}: nothing of the table is left to be done; choose other rows or columns")
    changed = changes(table, arguments)
    marks = [_listed("changed", changed)] if changed else []
    stand_for: dict[tuple[str, ...], list[str]] = {}
    for job in chosen:
        for overrides in BasicSweeper.split_arguments(parse([*params, *job.overrides, *for_all, *marks]), None)[0]:
            stand_for.setdefault(tuple(overrides), []).append(job.name)
    log.info("%s: %s of %s jobs of the table, %s in all", name, len(chosen), len(table.jobs()), len(stand_for))
    return [[*overrides, _listed("stands_for", names)] for overrides, names in stand_for.items()]


def _listed(name: str, values: Sequence[str]) -> str:
    return f"table.{name}=[{','.join(map(_quoted, values))}]"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
