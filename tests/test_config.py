"""A node of the configuration: checked against the signature of its class."""

import re
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import pytest
from omegaconf import OmegaConf
from pydantic import Field, PositiveInt

from lmc import config
from lmc.errors import UserError

HERE = __name__


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 1


@dataclass(frozen=True, kw_only=True)
class Option:
    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    absent_at_default: ClassVar[frozenset[str]] = frozenset({"later"})

    width: PositiveInt
    order: Literal["random", "forward"] = "random"
    fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    sizes: tuple[int, ...] = (1, 2)
    batch_size: int = 10
    later: float | None = None
    inner: Inner = field(default_factory=Inner)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("options_under_test")
    vars(module).update(Option=Option, Inner=Inner)
    monkeypatch.setitem(sys.modules, "options_under_test", module)


def node(**values: object) -> dict[str, object]:
    inner = {"_target_": "options_under_test.Inner"}
    return {"_target_": "options_under_test.Option", "width": 3, "inner": inner, **values}


def test_omitted_and_explicit_defaults_give_the_same_settings():
    explicit = node(order="random", fraction=0.5, sizes=[1, 2], batch_size=10)
    assert config.settings(node(), "x") == config.settings(explicit, "x")


def test_numbers_are_cast_to_what_the_signature_says():
    values = config.settings(node(width=3.0, fraction=1), "x")
    assert repr(values["width"]) == "3"
    assert repr(values["fraction"]) == "1.0"
    assert repr(values["inner"]["rate"]) == "1.0"


def test_identity_leaves_out_what_cannot_change_a_result():
    assert "batch_size" not in config.identity(node(), "x")
    assert config.identity(node(batch_size=1), "x") == config.identity(node(batch_size=2), "x")
    assert config.identity(node(width=4), "x") != config.identity(node(), "x")


def test_a_setting_that_came_later_is_in_the_key_only_where_it_says_something():
    assert "later" not in config.identity(node(), "x")
    assert "later" not in config.identity(node(later=None), "x")
    assert config.identity(node(later=2), "x")["later"] == 2


def test_build_builds_nested_nodes():
    built = config.build(node(inner={"_target_": "options_under_test.Inner", "rate": 2}), "x")
    assert built == Option(width=3, inner=Inner(rate=2.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widht": 3}, "x.widht is not a setting; did you mean width? known: batch_size, fraction, inner"),
        ({"width": "???"}, "x.width is missing; set it with x.width=VALUE"),
        ({"width": -3}, "x.width=-3 cannot be used: Input should be greater than 0"),
        ({"width": "wide"}, "x.width='wide' cannot be used: Input should be a valid integer"),
        ({"order": "sideways"}, "x.order='sideways' cannot be used: Input should be 'random' or 'forward'"),
        ({"sizes": [1, "two"]}, "x.sizes[1]='two' cannot be used"),
        (
            {"inner": {"_target_": "options_under_test.Inner", "rte": 2}},
            "x.inner.rte is not a setting; did you mean rate?",
        ),
        (
            {"inner": {"_target_": "options_under_test.Iner"}},
            "x.inner._target_='options_under_test.Iner' cannot be imported",
        ),
    ],
)
def test_mistakes_are_one_line_that_names_the_place(values: dict[str, object], message: str):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        config.build(node(**values), "x")
    assert "\n" not in str(caught.value)


def test_before_keeps_the_values_below_a_limit():
    config.register()
    node = OmegaConf.create({"epochs": 5, "kept": "${before:${epochs},0,1,5,10}"})
    assert OmegaConf.to_container(node, resolve=True)["kept"] == [0, 1]
