"""The root schema, and how a node of the configuration becomes an object.

Every option of every group names its class in `_target_`. The signature of that class is the schema of the option:
its annotations say which values are allowed (pydantic checks them), its defaults complete what was left out, and the
validated values, not the text of the YAML file, make the key of a stage. So a typo, a wrong type or a missing value
stops before anything is trained, and an omitted and an explicit default give the same key.
"""

import difflib
import inspect
import os
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmc.errors import UserError

if typing.TYPE_CHECKING:
    from omegaconf import DictConfig


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
