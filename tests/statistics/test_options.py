import pytest
import yaml

from lmc.config import build, conf_dir, identity, settings
from lmc.errors import UserError

OPTIONS = ("none", "reset", "repair", "rescale")


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


@pytest.mark.parametrize("option", OPTIONS[1:])
@pytest.mark.parametrize("wrong", [{"examples": 1}, {"batch_size": 1}, {"batch_size": "many"}, {"batches": 3}])
def test_wrong_settings_are_refused_by_name(load, option, wrong):
    with pytest.raises(UserError, match=f"statistics.{next(iter(wrong))}"):
        build({**load(option), **wrong}, "statistics")
