"""The report of a large sweep is made in seconds."""

import json
from pathlib import Path

import pytest

from lmc.report.sweep import write_sweep
from lmc.results import PathPoint, path_label, path_rows, write_path, write_rows, write_summary

JOBS, POINTS = 500, 25
TABLE = {
    "title": "T",
    "paper": "P",
    "rows": {f"{epochs} epochs": [f"training.epochs={epochs}"] for epochs in range(JOBS // 5)},
    "columns": {"barrier": {"measure": "aligned_train_loss_barrier", "published": {"3 epochs": 0.1}}},
    "changed": [],
}


@pytest.fixture
def large_sweep(tmp_path: Path) -> Path:
    """500 jobs of a paper's table of 100 rows, each with one pair and both of its paths on both splits."""
    settings = {f"group{g}": {f"value{v}": v for v in range(12)} for g in range(9)}
    for job in range(JOBS):
        folder = tmp_path / str(job)
        (folder / ".hydra").mkdir(parents=True)
        points = [
            PathPoint(
                pair=(0, 1), path=path, split=split, t=step / (POINTS - 1), loss=0.1 + 0.001 * job * step,
                accuracy=0.9, distance=float(step), examples=1000,
            )
            for path in ("aligned", "unaligned")
            for split in ("train", "test")
            for step in range(POINTS)
        ]  # fmt: skip
        rows = path_rows(points, {path_label(p.path, p.pair): f"{job}{p.path}" for p in points})
        write_rows(folder / "results.jsonl", rows)
        write_path(folder / "path.csv", points)
        own = json.loads(json.dumps(settings)) | {"training": {"epochs": job // 5}, "seeds": [job, job + 1]}
        own["table"] = {**TABLE, "stands_for": [f"training.epochs={job // 5}"]}
        made = {"versions": {}, "commit": None, "hardware": "", "artifacts": {}}
        write_summary(folder / "summary.json", own, {"alignment": "none", "experiment": "e"}, rows, made)
    return tmp_path


def test_the_report_of_500_jobs_takes_less_than_10_s(large_sweep, benchmark):
    benchmark.pedantic(write_sweep, args=([large_sweep], large_sweep), rounds=1, iterations=1)
    if benchmark.stats is not None:  # None with --benchmark-disable
        assert benchmark.stats.stats.max < 10
