"""The root schema, and how a node of the configuration becomes an object.

Every option of every group names its class in `_target_`. The signature of that class is the schema of the option:
its annotations say which values are allowed (pydantic checks them), its defaults complete what was left out, and the
validated values, not the text of the YAML file, make the key of a stage. So a typo, a wrong type or a missing value
stops before anything is trained, and an omitted and an explicit default give the same key.
"""

import difflib
import inspect
import os
import re
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lmc.errors import UserError

if typing.TYPE_CHECKING:
    from omegaconf import DictConfig

# What the options of conf/hydra/launcher are made of, and the extra of lmc that installs it.
_LAUNCHERS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}
# Groups of which any number of options can be chosen.
_OF_MANY = frozenset({"analysis"})


@dataclass
class StoreConfig:
    """Where artifacts are kept."""

    root: str = "multirun/store"


@dataclass
class TableConfig:
    """What an experiment file says of its table; `lmc.experiment.table` reads and checks it.

    Not the file's are `only` (which rows and columns are wanted), `stands_for` (which of the table's jobs this one is)
    and `changed` (what the command line changed of the experiment).
    """

    title: str = ""
    paper: str = ""
    source: str = ""
    rows: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    exceptions: list[Any] = field(default_factory=list)
    quick: list[str] = field(default_factory=list)
    not_quick: list[str] = field(default_factory=list)
    smoke: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    only: list[str] = field(default_factory=list)
    stands_for: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


@dataclass
class Config:
    """The root of the configuration; groups are checked against the signature of their `_target_`."""

    dataset: Any = None
    architecture: Any = None
    training: Any = None
    endpoints: Any = None
    alignment: Any = None
    merge: Any = None
    curve: Any = None
    statistics: Any = None
    evaluation: Any = None
    analysis: dict[str, Any] = field(default_factory=dict)
    tracker: Any = None
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    seed: int = 0
    device: str = "auto"
    store: StoreConfig = field(default_factory=StoreConfig)
    table: TableConfig | None = None


def conf_dir() -> str:
    """Return the absolute path of conf/: beside the package in a checkout, inside it when installed; LMC_CONF wins."""
    package = Path(__file__).resolve().parent
    for candidate in (os.environ.get("LMC_CONF"), package / "conf", package.parent / "conf"):
        if candidate and (Path(candidate) / "config.yaml").is_file():
            return str(Path(candidate).resolve())
    raise UserError("no conf/ folder with a config.yaml found; set LMC_CONF to it or install lmc again")


def register() -> None:
    """Make known to Hydra what conf/ speaks of.

    The root schema, under the name that the defaults list of conf/config.yaml begins with; and the resolver `before`:
    ${before:LIMIT,A,B,...} is the list of those of A, B, ... that are below LIMIT, so that an experiment that keeps
    epochs can be made shorter.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("before", lambda limit, *values: [v for v in values if v < limit], replace=True)


def settings(node: Mapping[str, Any], where: str, given: Collection[str] = ()) -> dict[str, Any]:
    """Return the effective settings of `node`: validated, complete, plain JSON values, `_target_` included.

    Args:
        node: a resolved plain mapping with a `_target_`.
        where: its place in the configuration, for messages ("alignment").
        given: parameters of the target that the caller supplies itself; not allowed in the node.

    Raises:
        UserError: an unknown key (with the nearest valid ones), a missing or an unusable value.
    """
    return {name: _plain(value) for name, value in _validated(node, where, given).items()}


def identity(node: Mapping[str, Any], where: str, given: Collection[str] = ()) -> dict[str, Any]:
    """Return what a key is made of: `settings` without those that do not belong into it.

    A class says which these are: `outside_key` names settings that cannot change a result; `absent_at_default` names
    settings that came later than the first release, and at their default change nothing: without them in the key, what
    was computed before they existed is still found.
    """
    return _key_settings(settings(node, where, given), where)


def _key_settings(effective: dict[str, Any], where: str) -> dict[str, Any]:
    target = _locate(effective["_target_"], where)
    hidden = set(getattr(target, "outside_key", frozenset[str]()))
    for name in getattr(target, "absent_at_default", frozenset[str]()):
        if effective[name] == _plain(inspect.signature(target).parameters[name].default):
            hidden.add(name)
    return {
        name: _key_settings(value, f"{where}.{name}") if _is_node(value) else value
        for name, value in effective.items()
        if name not in hidden
    }


def build(node: Mapping[str, Any], where: str, **given: Any) -> Any:
    """Return the object that `node` describes: its `_target_` called with the effective settings and `given`.

    Raises:
        UserError: as `settings`.
    """
    values = _validated(node, where, given)
    target = _locate(values.pop("_target_"), where)
    nested = {name: build(value, f"{where}.{name}") if _is_node(value) else value for name, value in values.items()}
    return target(**nested, **given)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean a or b? " for the names in `known` closest to `name`, or an empty string."""
    stem, _, last = name.rpartition(".")  # the beginning of a dotted name is the same for all and proves nothing
    leaves = {entry.removeprefix(f"{stem}."): entry for entry in known}
    close = [leaves[leaf] for leaf in difflib.get_close_matches(last, list(leaves), n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(close)}? " if close else ""


def plain(composed: "DictConfig") -> dict[str, Any]:
    """Return a composed configuration as plain nested values, everything resolved.

    Raises:
        UserError: a value is missing ("???"); names it.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue

    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        place = error.full_key or str(error)
        raise UserError(f"{place} is missing; set it with {place}=VALUE") from None
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def check_choices(overrides: Iterable[str]) -> None:
    """Refuse what would choose nothing, or several options where there is one.

    Hydra merges the options of a list into each other, and of null it says only what it is not.

    Args:
        overrides: the command line.

    Raises:
        UserError: such a choice; names it.
    """
    for entry in overrides:
        key, _, value = entry.partition("=")
        group = key.lstrip("+").partition("@")[0]
        if not group or not Path(conf_dir(), group).is_dir():
            continue
        many = group in _OF_MANY
        if value == "null":
            # What an experiment is made of is a field of the schema; other groups only write over such fields.
            needed = group in {f.name for f in fields(Config)}
            without = f"{key}=[]" if many else f"~{key.lstrip('+')}"
            mend = f"choose one with {key}=NAME" if needed and not many else f"do without one with {without}"
            raise UserError(f"{entry} chooses no option; {mend}")
        if value.startswith("[") and not many:
            raise UserError(f"{entry} is a list, where one option can be chosen; choose it with {key}=NAME")


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

    folder = Path(conf_dir())
    choices = [entry for entry in overrides if (folder / entry.partition("=")[0].partition("@")[0]).is_dir()]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base="1.3"):
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


def check_seeds(seeds: list[int]) -> None:
    """Raise a `UserError` unless `seeds` are at least two different non-negative numbers."""
    if len(seeds) < 2:
        raise UserError(f"seeds={seeds}: a path joins two networks; give at least two seeds, for example seeds=[0,1]")
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"seeds={seeds}: a seed is there twice, which would compare a network with itself; make them differ"
        )
    if min(seeds) < 0:
        raise UserError(f"seeds={seeds}: a seed is negative; use 0, 1, 2, ...")


def _is_node(value: object) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _validated(node: Mapping[str, Any], where: str, given: Collection[str]) -> dict[str, Any]:
    if not _is_node(node):
        raise UserError(f"{where} is not an option with a _target_ but {node!r}; choose one with {where}=NAME")
    target = _locate(node["_target_"], where)
    parameters = {n: p for n, p in inspect.signature(target).parameters.items() if n not in given}
    hints = typing.get_type_hints(target if inspect.isfunction(target) else target.__init__, include_extras=True)
    for name in node:
        if name != "_target_" and name not in parameters:
            known = ", ".join(sorted(parameters)) or "none"
            raise UserError(f"{where}.{name} is not a setting; {nearest(name, parameters)}known: {known}")
    effective: dict[str, Any] = {"_target_": node["_target_"]}
    for name, parameter in parameters.items():
        place = f"{where}.{name}"
        if name not in node and parameter.default is inspect.Parameter.empty:
            raise UserError(f"{place} is missing; set it with {place}=VALUE")
        value = node.get(name, parameter.default)
        if isinstance(value, str) and value == "???":
            raise UserError(f"{place} is missing; set it with {place}=VALUE")
        effective[name] = _validated(value, place, ()) if _is_node(value) else _checked(value, hints.get(name), place)
    return effective


def _checked(value: Any, hint: Any, where: str) -> Any:
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    if hint is None:
        raise TypeError(f"{where}: the parameter has no annotation, so it cannot be checked")
    try:
        try:
            adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        except PydanticUserError:  # the type brings its own configuration (a dataclass or a model)
            adapter = TypeAdapter(hint)
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        inside = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
        raise UserError(f"{where}{inside}={first['input']!r} cannot be used: {first['msg']}") from None


def _locate(path: str, where: str) -> Any:
    import importlib

    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{where}._target_={path!r} cannot be imported ({error}); give the dotted path of a class"
        ) from None


def _plain(value: Any) -> Any:
    """The value as canonical JSON: tuples become lists, paths text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} has no plain form")
