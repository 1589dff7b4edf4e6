import pytest
import yaml

from lmc.config import build, conf_dir, identity, settings
from lmc.errors import UserError

OPTIONS = ("none", "reset", "repair", "rescale", "reshift", "repair_closed_form", "reset_data_free")
CALIBRATED = OPTIONS[1:-1]


@pytest.fixture
def load():
    def read(option):
        with open(f"{conf_dir()}/statistics/{option}.yaml", encoding="utf-8") as file:
            return yaml.safe_load(file)

    return read


@pytest.mark.parametrize("option", OPTIONS)
def test_option_lists_every_setting_with_its_default(load, option):
    node = load(option)
    assert settings(node, "statistics") == node
    assert settings({"_target_": node["_target_"]}, "statistics") == node
    assert identity(node, "statistics") == node  # the batch size is part of the key
    assert callable(build(node, "statistics").bind)


@pytest.mark.parametrize("option", CALIBRATED)
@pytest.mark.parametrize("wrong", [{"examples": 1}, {"batch_size": 1}, {"batch_size": "many"}, {"batches": 3}])
def test_wrong_settings_are_refused_by_name(load, option, wrong):
    with pytest.raises(UserError, match=f"statistics.{next(iter(wrong))}"):
        build({**load(option), **wrong}, "statistics")


@pytest.mark.parametrize("option", ["repair", "rescale", "reshift"])
def test_sequential_is_part_of_the_key(load, option):
    node = load(option)
    assert node["sequential"] is False
    assert identity({**node, "sequential": True}, "statistics") != identity(node, "statistics")
    with pytest.raises(UserError, match=r"statistics\.sequential"):
        build({**node, "sequential": "sometimes"}, "statistics")


@pytest.mark.parametrize("correlation", [-0.1, 1.1, "high"])
def test_a_correlation_that_cannot_be_is_refused(load, correlation):
    with pytest.raises(UserError, match=r"statistics\.correlation"):
        build({**load("reset_data_free"), "correlation": correlation}, "statistics")


@pytest.mark.parametrize("wrong", [{"split": "test"}, {"examples": 1}, {"batch_size": 1}, {"degrees": 20}])
def test_wrong_settings_of_the_temperature_are_refused_by_name(load, wrong):
    node = {name: value for name, value in load("temperature").items() if name != "defaults"}
    chosen = {**node, "after": load("rescale")}
    assert settings(chosen, "statistics") == chosen
    assert settings({"_target_": node["_target_"], "after": load("rescale")}, "statistics") == chosen
    assert identity(chosen, "statistics") == chosen
    with pytest.raises(UserError, match=f"statistics.{next(iter(wrong))}"):
        build({**chosen, **wrong}, "statistics")
    with pytest.raises(UserError, match=r"statistics\.after is missing"):
        build(node, "statistics")
