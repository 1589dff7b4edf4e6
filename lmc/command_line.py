"""What is said of a command line that Hydra cannot make a configuration of: one line, with the nearest valid names."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmc.config import Config, conf_dir, nearest
from lmc.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

# What the options of conf/hydra/launcher are made of, and the extra of lmc that installs it.
_LAUNCHERS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}
# Groups of which any number of options can be chosen.
_OF_MANY = frozenset({"analysis"})


def check_choices(overrides: Iterable[str]) -> None:
    """Refuse what would choose nothing, or several options where there is one.

    Hydra merges the options of a list into each other, and of null it says only what it is not.

    Args:
        overrides: the command line.

    Raises:
        UserError: such a choice; names it.
    """
    for entry in overrides:
        if (group := _group(entry)) is None:
            continue
        key, _, value = entry.partition("=")
        if value == "null":
            raise UserError(f"{entry} chooses no option; {_instead_of_null(key, group)}")
        if value.startswith("[") and group not in _OF_MANY:
            raise UserError(f"{entry} is a list, where one option can be chosen; choose it with {key}=NAME")


def _instead_of_null(key: str, group: str) -> str:
    if group in _OF_MANY:
        return f"do without one with {key}=[]"
    # What an experiment is made of is a field of the schema; other groups only write over such fields.
    if group in {f.name for f in fields(Config)}:
        return f"choose one with {key}=NAME"
    return f"do without one with ~{key.lstrip('+')}"


def explain(error: Exception, overrides: Sequence[str] = ()) -> str:
    """Return one line about an error of the user, of Hydra or of OmegaConf, with the nearest valid names.

    Args:
        error: what was raised while the configuration was composed or an experiment was run.
        overrides: the command line, which tells what the keys of the chosen options are.
    """
    from hydra.errors import MissingConfigException

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and name in _LAUNCHERS:
            return f'hydra/launcher: {name} is not installed; pip install "lmc[{_LAUNCHERS[name]}]"'
        if group.startswith("experiment"):  # those of a paper are in a folder of their own
            group, name = "experiment", f"{group}/{name}".removeprefix("experiment/")
        folder, options = Path(conf_dir(), group), set(error.options or ())
        if group == "experiment" or not options:  # Hydra says nothing of other folders, and of groups of many
            paths = folder.rglob("*.yaml") if group == "experiment" else folder.glob("*.yaml")
            options |= {path.relative_to(folder).with_suffix("").as_posix() for path in paths}
        if options:
            return f"{group}={name} is no option; {nearest(name, options)}known: {', '.join(sorted(options))}"
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    lines = [line.strip() for cause in causes for line in str(cause).splitlines() if line.strip()]
    unknown = re.fullmatch(r"Could not override '([\w./]+)'\.?", lines[0])
    if unknown:
        name = unknown.group(1)
        if (remedy := _unchosen(name, overrides)) is not None:
            return f"{name} is not a setting yet; {remedy}"
        known = _known_settings(name, overrides)
        return f"{name} is not a setting; {nearest(name, known)}known: {', '.join(known)}"
    internal = ("full_key", "object_type", "reference_type")
    return "; ".join([line for line in dict.fromkeys(lines) if not line.startswith(internal)][:2])


def _group(entry: str) -> str | None:
    """The group of which an override chooses an option; None if it sets a value."""
    group = entry.partition("=")[0].lstrip("+").partition("@")[0]
    return group if group and Path(conf_dir(), group).is_dir() else None


def _unchosen(name: str, overrides: Sequence[str]) -> str | None:
    """How to choose the option that the setting `name` would belong to, if none of its group is chosen."""
    *parents, _ = name.split(".")
    node: Any = _with_choices(overrides)
    for place, parent in enumerate(parents, 1):
        path = Path(conf_dir(), *parents[:place])
        if parent not in node:
            return f"choose {path.parent.name}=[{parent}]" if path.with_suffix(".yaml").is_file() else None
        node = node[parent]
        if node is None and path.is_dir():
            options = ", ".join(sorted(option.stem for option in path.glob("*.yaml")))
            return f"choose an option with {'/'.join(parents[:place])}=NAME; known: {options}"
        if node is None:
            return None
    return None


def _with_choices(overrides: Sequence[str]) -> "DictConfig":
    """The configuration with the options that `overrides` choose, and nothing else of them."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    choices = [entry for entry in overrides if _group(entry) is not None]
    GlobalHydra.instance().clear()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        try:
            return compose("config", choices)
        except HydraException:  # a sweep's list of options, or an option of the user's own folder
            return compose("config")


def _known_settings(name: str, overrides: Sequence[str]) -> list[str]:
    """The settings beside the unknown setting `name`, for the options that `overrides` choose."""
    folder = Path(conf_dir())
    node: Any = _with_choices(overrides)
    *parents, _ = name.split(".")
    for parent in parents:
        if parent not in node:
            parents = []
            break
        node = node[parent]
    if not parents:
        roots = {entry.name for entry in folder.iterdir() if entry.is_dir()} - {"hydra"}
        return sorted({*roots, *(f.name for f in fields(Config))})
    return sorted(".".join([*parents, str(key)]) for key in node if key != "_target_")
