"""The command line as a user meets it: real processes, their output and their files."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmc import results
from lmc.config import conf_dir

SMALL = [
    *("dataset=synthetic", "dataset.examples=60", "dataset.test_examples=30", "dataset.size=8", "dataset.channels=1"),
    *("architecture.width=6", "architecture.depth=2", "training.epochs=2", "training.batch_size=20"),
    *("evaluation.grid=3", "tracker.mode=disabled"),
]
MODULE = [sys.executable, "-W", "error", "-m", "lmc.app"]


def lmc(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `lmc` in `folder`, where it keeps its results and its store."""
    kept = {name: value for name, value in os.environ.items() if name != "LMC_STORE"}
    return subprocess.run(
        [*MODULE, *arguments], cwd=folder, env={**kept, **environment}, capture_output=True, text=True, timeout=300
    )


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_a_run_leaves_everything_the_documentation_says(tmp_path: Path):
    done = lmc(tmp_path, *SMALL, "tracker.mode=offline")
    assert done.returncode == 0, done.stderr
    folder = only(tmp_path, "multirun/*-*-*/*")
    present = {path.name for path in folder.iterdir()}
    assert present >= {
        *(".hydra", "lmc.log", "results.jsonl", "path.csv", "barrier.png", "barrier.svg", "summary.json", "wandb"),
    }
    for text in ("Endpoints", "Barrier", "unaligned", "aligned", str(folder.relative_to(tmp_path) / "barrier.png")):
        assert text in done.stdout
    rows = results.read_rows(folder / "results.jsonl")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["rows"] == [row.as_dict() for row in rows]
    assert summary["settings"]["training"]["epochs"] == 2
    assert summary["choices"]["alignment"] == "weight_matching"
    again = {row.what: row.value for row in results.path_rows(results.read_path(folder / "path.csv"), _Same())}
    assert again["barrier"] in {row.value for row in rows if row.what == "barrier"}


class _Same(dict[str, str]):
    """Any key: ""."""

    def __missing__(self, key: str) -> str:
        return ""


def test_a_sweep_trains_once_reports_and_computes_nothing_again(tmp_path: Path):
    axes = ["alignment=none,activation_matching,weight_matching", "curve=linear,bezier"]
    first = lmc(tmp_path, "-m", *SMALL, *axes)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("network 0: 2 steps") == 1
    sweep = only(tmp_path, "multirun/*-*-*/*")
    assert {path.name for path in sweep.glob("report.*")} == {"report.md", "report.csv", "report.tex", "report.html"}
    table = (sweep / "report.md").read_text(encoding="utf-8")
    assert sum(line.startswith("|") for line in table.splitlines()) >= 2 + 6
    made = sorted(path.stat().st_mtime_ns for path in (tmp_path / "multirun/store").rglob("record.json"))
    time.sleep(1.1)  # the folder of a sweep is named after the second of its start
    second = lmc(tmp_path, "-m", *SMALL, *axes)
    assert second.returncode == 0, second.stderr
    assert "steps in" not in second.stdout
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "multirun/store").rglob("record.json")) == made


def test_parallel_jobs_that_need_the_same_network_train_it_once(tmp_path: Path):
    done = lmc(tmp_path, "-m", *SMALL, "hydra/launcher=workstation", "alignment=none,weight_matching")
    assert done.returncode == 0, done.stderr
    networks = list((tmp_path / "multirun/store/endpoints").glob("*"))
    assert len(networks) == 2
    logs = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("multirun/*-*-*/*/*/lmc.log"))
    assert logs.count("network 0: 2 steps") == 1
    assert logs.count("network 1: 2 steps") == 1


def test_a_failed_job_does_not_take_the_others_or_the_report_with_it(tmp_path: Path):
    done = lmc(tmp_path, "-m", *SMALL, "training.epochs=2,abc")
    assert done.returncode == 1
    assert "lmc: training.epochs='abc' cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
    sweep = only(tmp_path, "multirun/*-*-*/*")
    assert (sweep / "0" / "summary.json").exists()
    assert (sweep / "report.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alignment=weight_maching"], "alignment=weight_maching is no option; did you mean weight_matching or"),
        (["sead=3"], "sead is not a setting; did you mean seed or seeds?"),
        (["alignment.max_itr=3"], "alignment.max_itr is not a setting; "),
        (["+alignment.max_itr=3"], "alignment.max_itr is not a setting; "),
        (["training.attack.steps=3"], "training.attack.steps is not a setting yet; choose an option with training/att"),
        (["analysis=[plan]"], "analysis=plan is no option; did you mean plane? known: backdoor, "),
        (["experiment=tatro2020/tabel1"], "experiment=tatro2020/tabel1 is no option; did you mean tatro2020/table1"),
        (["experiment=jordan2023/mlp_depth", "architecture.depth=2"], "architecture.depth=2: the table has "),
        (["experiment=tatro2020/table1", "table.only=[dataset:mnist]"], "table.only=[dataset:mnist] leaves no job; "),
        (["analysis=plan"], "analysis=plan is no option; did you mean plane? known: backdoor, "),
        (
            ["alignment=[none,random]"],
            "alignment=[none,random] is a list, where one option can be ",
        ),
        (["alignment=null"], "alignment=null chooses no option; choose one with alignment=NAME"),
        (["recipe=null"], "recipe=null chooses no option; do without one with ~recipe"),
        (["analysis=null"], "analysis=null chooses no option; do without one with analysis=[]"),
        (["analysis.plane.grid=3"], "analysis.plane.grid is not a setting yet; choose analysis=[plane]"),
        (["seeds=abc"], "Error merging override seeds=abc"),
        (["endpoints=checkpoint"], "endpoints.files is missing; set it with endpoints.files=VALUE"),
        (["architecture.width=-1"], "architecture.width=-1 cannot be used: Input should be greater than 0"),
        (["store.root=/proc/none"], "cannot write the store /proc/none"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_a_non_zero_exit(tmp_path: Path, arguments: list[str], message: str):
    done = lmc(tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"lmc: {message}")
    assert done.stderr.count("\n") == 1, done.stderr


def test_the_entry_point_imports_nothing_heavy():
    heavy = ("torch", "torchvision", "numpy", "scipy", "sklearn", "matplotlib", "wandb", "pydantic", "rich")
    code = f"import sys, lmc, lmc.app; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_completion_knows_the_options(tmp_path: Path):
    environment = {"COMP_LINE": "lmc alignment=", "COMP_POINT": "14", "_HYDRA_COMPLETE": "1"}
    done = lmc(tmp_path, "-sc", "query=bash", **environment)
    options = Path(conf_dir(), "alignment").glob("*.yaml")
    assert set(done.stdout.split()) == {f"alignment={path.stem}" for path in options}
