"""Every file in conf/dataset: it builds, lists every setting, and says nothing else than the signature by accident."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lmc import config
from lmc.dataset.augmentation import Augmentation
from lmc.dataset.source import Source
from lmc.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf" / "dataset"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))
WHERE = {"root", "download", "path"}

assert OPTIONS


def node(option):
    settings = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"), resolve=True)
    settings.pop("defaults", None)
    return settings


@pytest.mark.parametrize("option", OPTIONS)
class TestEveryOption:
    def test_builds_a_source(self, option):
        built = config.build(node(option), "dataset")
        assert isinstance(built, Source)
        assert isinstance(built.augmentation, Augmentation)

    def test_lists_every_setting(self, option):
        settings = node(option)
        target = type(config.build(settings, "dataset"))
        assert set(settings) - {"_target_"} == set(inspect.signature(target).parameters)
        nested = set(inspect.signature(Augmentation).parameters)
        assert set(settings["augmentation"]) - {"_target_"} == nested

    def test_every_line_is_explained(self, option):
        lines = (CONF / f"{option}.yaml").read_text().splitlines()
        assert lines[0].startswith("# ")
        assert all("_target_:" in line or " # " in line for line in lines[1:])

    def test_where_the_files_are_is_no_part_of_the_key(self, option):
        settings = node(option)
        identity = config.identity(settings, "dataset")
        assert not WHERE & set(identity)
        assert set(identity) == set(settings) - WHERE - {"trigger"}  # at its default, which came later
        if "root" in settings:
            assert config.identity(settings | {"root": "elsewhere"}, "dataset") == identity

    def test_settings_differ_from_the_signature_only_where_the_source_is_named(self, option):
        settings = node(option)
        signature = inspect.signature(type(config.build(settings, "dataset"))).parameters
        changed = {
            name
            for name, value in settings.items()
            if name in signature and name not in WHERE | {"augmentation"} and value != signature[name].default
        }
        assert changed <= {"mean", "std"}

    @pytest.mark.parametrize(
        "setting", [{"train_size": 0}, {"train_size": -1}, {"validation_size": -1}, {"mean": [2.0]}]
    )
    def test_impossible_values_are_refused(self, option, setting):
        with pytest.raises(UserError, match=rf"dataset\.{next(iter(setting))}"):
            config.build(node(option) | setting, "dataset")


def test_an_option_without_augmentation_can_still_be_described():
    plain = {"_target_": "lmc.dataset.digits.Digits"}
    assert config.settings(plain, "dataset")["augmentation"] is None
    assert config.build(plain, "dataset").load().augmentation == Augmentation()


def test_lmc_data_moves_the_root(monkeypatch):
    monkeypatch.setenv("LMC_DATA", "/somewhere")
    assert node("mnist")["root"] == "/somewhere"
    monkeypatch.delenv("LMC_DATA")
    assert node("mnist")["root"] == "data"


def test_unknown_settings_are_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"dataset\.trainsize is not a setting; did you mean train_size"):
        config.build(node("digits") | {"trainsize": 3}, "dataset")
    wrong = node("digits") | {"augmentation": node("digits")["augmentation"] | {"flipp": True}}
    with pytest.raises(UserError, match=r"dataset\.augmentation\.flipp is not a setting; did you mean flip"):
        config.build(wrong, "dataset")
