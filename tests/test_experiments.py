"""Every experiment file: its table can be read, its jobs compose, and all of it runs in small."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lmc.config import conf_dir
from lmc.experiment.table import read_table

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


def smoke(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an experiment on drawn images, as a user would."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LMC_STORE": str(folder / "store")}
    command = [sys.executable, "-W", "error", "-m", "lmc.app", f"experiment={name}", "budget=smoke"]
    of_its_own = "dataset" not in {line.partition("=")[0] for line in written(name).get("table", {}).get("smoke", ())}
    drawn = ["dataset=synthetic", "dataset.size=8", "dataset.channels=1"] if of_its_own else []
    more = [*drawn, "tracker.mode=disabled", "hydra.sweep.dir=sweep"]
    return subprocess.run(
        [*command, *more], cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_in_small(name, tmp_path):
    done = smoke(name, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = (tmp_path / "sweep" / "report.md").read_text(encoding="utf-8")
    assert "## Missing" not in report
    if name not in TABLES:
        return
    assert "REDUCED RUN, not the paper's: budget=smoke" in report
    cells = list(csv.DictReader((tmp_path / "sweep" / "table.csv").read_text(encoding="utf-8").splitlines()))
    table = read_table(written(name)["table"], name)
    # A column of one moment of training is empty in a training of one epoch.
    of_a_moment = {column.label for column in table.columns if column.measure is not None and column.measure.more}
    empty = [(cell["row"], cell["column"]) for cell in cells if not cell["mean"]]
    assert [cell for cell in empty if cell[1] not in of_a_moment] == []
    assert len(empty) < len(cells)
    assert {cell["within"] for cell in cells} == {""}
