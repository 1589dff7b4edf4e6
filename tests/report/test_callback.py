import subprocess
import sys
from pathlib import Path

import pytest

CONF = Path(__file__).parents[2] / "conf"
CONFIG = """
defaults:
  - _self_
  - override hydra/callbacks: report
x: 0
fails: -1
hydra:
  searchpath: [file://{conf}]
  sweep: {{dir: "{sweep}", subdir: "${{hydra:job.num}}"}}
  run: {{dir: "{sweep}"}}
"""
# Each job copies the run that was prepared for it, in place of an experiment.
APP = """
import shutil, sys
import hydra
from hydra.core.hydra_config import HydraConfig
from lmc.report.callback import write_pending

@hydra.main(config_path=".", config_name="config", version_base="1.3")
def main(config):
    if config.x == config.fails:
        raise ValueError("the job's own error")
    folder = HydraConfig.get().runtime.output_dir
    for name in ("results.jsonl", "path.csv", "summary.json"):
        shutil.copy(f"prepared/{config.x}/{name}", folder)

if __name__ == "__main__":
    try:
        main()
    finally:
        write_pending()
"""


@pytest.fixture
def app(tmp_path, make_run):
    for number, alignment in enumerate(("none", "weight_matching")):
        make_run(tmp_path / "prepared" / str(number), choices={"alignment": alignment})
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "config.yaml").write_text(CONFIG.format(conf=CONF, sweep=tmp_path / "sweep"))

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "app.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return start


def test_a_sweep_ends_with_its_report(app, tmp_path):
    ended = app("-m", "x=0,1")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "sweep" / "report.html").is_file()
    assert ended.stdout.count("report of the sweep") == 1
    assert "weight_matching" in (tmp_path / "sweep" / "report.md").read_text()


def test_a_sweep_with_a_failed_job_has_its_report_too(app, tmp_path):
    ended = app("-m", "x=0,1", "fails=0")
    assert ended.returncode != 0
    assert "the job's own error" in ended.stderr
    report = (tmp_path / "sweep" / "report.md").read_text()
    assert "weight_matching" in report
    assert f"{tmp_path / 'sweep' / '0'}: did not end (x=0 fails=0)" in report


def test_a_sweep_of_which_nothing_ended_says_so_and_no_more(app, tmp_path):
    ended = app("-m", "x=0", "fails=0")
    assert ended.returncode != 0
    assert ended.stdout.count("no report of the sweep: no finished run below") == 1
    assert not (tmp_path / "sweep" / "report.md").exists()


def test_a_single_run_and_a_sweep_that_never_began_write_no_report(app, tmp_path):
    assert app("x=0").returncode == 0
    assert app("-m", "y=0").returncode != 0
    assert not list(tmp_path.rglob("report.*"))
