"""Every experiment file: its table can be read, its jobs compose, and all of it runs in small."""

import csv
import logging
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from lmc import app
from lmc.config import conf_dir
from lmc.experiment.table import read_table
from lmc.forecast.composed import composed_jobs

FOLDER = Path(conf_dir()) / "experiment"
EXPERIMENTS = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
TABLES = [name for name in EXPERIMENTS if "/" in name]

assert TABLES


def written(name: str) -> dict:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_what_it_is_and_all_its_numbers_have_a_place(name):
    table = read_table(written(name)["table"], name)
    assert table is not None
    assert table.problems == ()
    assert table.title
    assert table.paper
    published = [number for column in table.columns for number in column.published.values()]
    assert all(number.source for number in published)
    assert all(column.tolerance for column in table.columns if column.published)


@pytest.mark.parametrize("name", TABLES)
def test_every_job_of_a_quick_run_composes(name):
    assert [overrides for overrides, _ in composed_jobs([f"experiment={name}", "budget=quick"])]


@pytest.fixture
def lmc(tmp_path, monkeypatch):
    """The command line, in this process and in a folder of its own: to import all takes longer than an experiment."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["lmc", *arguments])
        try:
            app.main()
        finally:
            GlobalHydra.instance().clear()
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            root.handlers[:], root.level = handlers, level

    return run


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_in_small(name, lmc, tmp_path):
    lmc(f"experiment={name}", "budget=smoke", "tracker.mode=disabled", "hydra.sweep.dir=sweep")
    report = (tmp_path / "sweep" / "report.md").read_text(encoding="utf-8")
    assert "## Missing" not in report
    if name not in TABLES:
        return
    assert "NOT THE PAPER'S RECIPE: budget=smoke" in report
    cells = list(csv.DictReader((tmp_path / "sweep" / "table.csv").read_text(encoding="utf-8").splitlines()))
    table = read_table(written(name)["table"], name)
    # A column of one moment of training is empty in a training of one epoch.
    of_a_moment = {column.label for column in table.columns if column.measure is not None and column.measure.more}
    empty = [(cell["row"], cell["column"]) for cell in cells if not cell["mean"]]
    assert [cell for cell in empty if cell[1] not in of_a_moment] == []
    assert len(empty) < len(cells)
    assert {cell["within"] for cell in cells} == {""}
