"""Every option of every group composes, builds, is named as its module and lists its settings; all of them are read."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from lmc import config
from lmc.config import conf_dir

CONF = Path(conf_dir())
GLOBAL = {"recipe", "experiment", "budget"}  # files that write over the whole configuration
OPTIONS = sorted(
    path.relative_to(CONF)
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and path.relative_to(CONF).parts[0] not in {*GLOBAL, "hydra"}
)
OVERLAYS = sorted(path.relative_to(CONF) for group in GLOBAL for path in (CONF / group).rglob("*.yaml"))
MANY = {"analysis"}  # groups of which any number is chosen, each at a place of its own below the group
GIVEN = {"architecture": {"input_shape": (3, 32, 32), "classes": 10}}
REQUIRED = {"endpoints/checkpoint.yaml": ["endpoints.files=[a.safetensors,b.safetensors]"]}

assert OPTIONS
assert OVERLAYS


def composed(overrides: list[str]) -> dict[str, Any]:
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return config.plain(compose("config", overrides))


def chosen(option: Path) -> tuple[dict[str, Any], str]:
    """The node of an option, composed into the whole configuration, and its place there."""
    group = option.parent.as_posix()
    settings = composed([f"{group}={option.stem}", *REQUIRED.get(option.as_posix(), [])])
    node, parts = settings, option.with_suffix("").parts if group in MANY else option.parent.parts
    for part in parts:
        node = node[part]
    return node, ".".join(parts)


def target_of(option: Path) -> type:
    raw = yaml.safe_load((CONF / option).read_text(encoding="utf-8"))
    module, _, name = raw["_target_"].rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


def letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalpha())


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_options_compose_and_build(option: Path):
    node, where = chosen(option)
    built = config.build(node, where, **GIVEN.get(where, {}))
    target = target_of(option)
    assert type(built) is target or (inspect.isfunction(target) and isinstance(built, nn.Module))
    config.identity(node, where, tuple(GIVEN.get(where, {})))


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_options_are_named_as_their_module_or_class(option: Path):
    target = target_of(option)
    assert target.__module__.startswith(f"lmc.{'.'.join(option.parent.parts)}."), target.__module__
    assert letters(option.stem) in {letters(target.__module__.rpartition(".")[2]), letters(target.__name__)}


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_options_list_every_setting(option: Path):
    node, where = chosen(option)
    parameters = inspect.signature(target_of(option)).parameters
    named = set(parameters) - set(GIVEN.get(where, {}))
    assert set(node) == {"_target_", *named}


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_setting_has_a_comment(option: Path):
    lines = (CONF / option).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# "), "the first line says what the option is"
    for number, line in enumerate(lines):
        if ":" in line and not line.lstrip().startswith(("#", "-", "_target_", "defaults:")):
            assert "#" in line or lines[number - 1].lstrip().startswith("#"), line


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_setting_is_read(option: Path):
    """A setting that no line of the class's module or its bases' loads would be a switch without a wire."""
    target = target_of(option)
    read: set[str] = set()
    for base in target.__mro__ if inspect.isclass(target) else (target,):
        if base.__module__.startswith("lmc."):
            read |= set(_loaded(Path(inspect.getfile(base))))
    read |= set(_loaded(CONF.parent / "lmc" / "training" / "loop.py"))
    read |= set(_loaded(CONF.parent / "lmc" / "pipeline.py"))
    missing = set(inspect.signature(target).parameters) - read
    assert not missing, f"never read: {missing}"


def _loaded(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id


def test_every_root_setting_is_read():
    sources = [CONF.parent / "lmc" / name for name in ("app.py", "plan.py", "pipeline.py", "report/paper.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    for name in OmegaConf.create(composed([])):
        assert f'settings["{name}"]' in text or f'"{name}"' in text, name


@pytest.mark.parametrize("overlay", OVERLAYS, ids=str)
def test_overlays_compose_and_build(overlay: Path):
    settings = composed([f"{overlay.parts[0]}={'/'.join(overlay.with_suffix('').parts[1:])}"])
    for group in ("training", "alignment", "curve", "statistics", "evaluation", "endpoints", "dataset"):
        built = config.build(settings[group], group)
        assert f"{type(built).__module__}.{type(built).__name__}" == settings[group]["_target_"]


def test_git_rebasin_on_mnist_has_plain_pixels_and_weights_of_unit_gain():
    # mnist_mlp_train.py: augmax.ByteToFloat and nothing more; flax's Dense draws from lecun_normal.
    found = composed(["recipe=git_rebasin_mlp", "dataset=mnist"])
    assert (found["dataset"]["mean"], found["dataset"]["std"]) == ([0.0], [1.0])
    assert found["architecture"]["initialisation"] == "lecun"
