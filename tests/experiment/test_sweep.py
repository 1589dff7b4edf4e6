"""From an experiment and a command line to the overrides of every job."""

import logging

import pytest
from hydra import compose, initialize_config_dir

from lmc import config
from lmc.errors import UserError
from lmc.experiment.sweep import jobs_of
from lmc.experiment.table import read_table


def jobs(*arguments: str, swept: tuple[str, ...] = ()) -> list[list[str]] | None:
    config.register()
    with initialize_config_dir(config.conf_dir(), version_base="1.3"):
        composed = compose("config", [*arguments], return_hydra_config=True)
    params = [f"{key}={value}" for key, value in (composed.hydra.sweeper.params or {}).items()]
    return jobs_of(composed, params, [*arguments, *swept])


def test_an_experiment_without_a_table_is_left_to_hydra():
    assert jobs("alignment=none") is None


def test_a_budget_of_an_experiment_without_a_table_comes_before_the_command_line():
    (job,) = jobs("experiment=mnist_mlp", "budget=smoke", "alignment=none", "architecture.width=12")
    assert {"dataset=synthetic", "architecture.width=12", "alignment=none"} <= set(job)


def test_each_job_of_a_table_is_repeated_and_says_what_it_stands_for():
    found = jobs("experiment=jordan2023/mlp_depth", "training.epochs=3")
    assert len(found) == 7 * 2 * 3
    assert found[0][-2:] == [
        "table.changed=['training.epochs=3']",
        "table.stands_for=['architecture.depth=1 architecture.norm=batch statistics=none']",
    ]
    assert {"seeds=[0,1]", "architecture.depth=1", "statistics=none", "training.epochs=3"} <= set(found[0])


def test_jobs_that_a_budget_makes_the_same_are_run_once():
    found = jobs("experiment=jordan2023/resnet20_width", "budget=smoke")
    with initialize_config_dir(config.conf_dir(), version_base="1.3"):
        composed = compose("config", ["experiment=jordan2023/resnet20_width"])
    table = read_table(config.plain(composed)["table"], "e")
    assert len(found) < len(table.jobs())
    listed = [job[-1].removeprefix("table.stands_for=['").removesuffix("']") for job in found]
    named = [name for names in listed for name in names.split("','")]
    assert sorted(named) == sorted(table.jobs())


def test_seeds_of_the_command_line_replace_those_of_the_experiment():
    found = jobs("experiment=jordan2023/mlp_depth", "seeds=[6,7]", swept=("architecture.depth=1,3",))
    assert len(found) == 2 * 2
    assert all("seeds=[6,7]" in job for job in found)


def test_what_is_wrong_with_published_numbers_is_a_warning(caplog):
    with initialize_config_dir(config.conf_dir(), version_base="1.3"):
        composed = compose("config", ["experiment=jordan2023/mlp_depth"], return_hydra_config=True)
    composed.table.columns["single network, test accuracy"].measure = "accuracy"
    with caplog.at_level(logging.WARNING):
        assert len(jobs_of(composed, [], [])) == 7 * 2
    assert "table.columns.single network, test accuracy.measure=accuracy does not exist" in caplog.text


def test_a_row_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"architecture.depth=2: the table has architecture.depth=1,3,5,10,20,30,40"):
        jobs("experiment=jordan2023/mlp_depth", "architecture.depth=2")
