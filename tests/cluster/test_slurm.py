"""Sweeps on a real Slurm: jobs that share a store, fail, run out of time, are taken from their node, or die.

The accounting, the queue and the signals are Slurm's own; only the wait after a requeue is cut short, by the command
that a user has for it too.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import slurm as slurms
from tests.cluster.slurm import Slurm

REASON = slurms.missing()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

EPOCHS = 12
SMALL = [
    *("dataset=synthetic", "dataset.examples=2000", "dataset.test_examples=30", "dataset.size=8", "dataset.channels=1"),
    *("architecture.width=6", "architecture.depth=1", f"training.epochs={EPOCHS}", "training.batch_size=4"),
    *("evaluation.grid=3", "tracker.mode=disabled", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    # Not below pytest's folder: the path of a socket is short.
    folder = Path(tempfile.mkdtemp(prefix="lmc-slurm-"))
    try:
        with slurms.running(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a database that was killed may still be writing


@pytest.fixture(scope="module")
def trained(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which a sweep of four jobs, two at a time, has ended; and what it said."""
    folder = tmp_path_factory.mktemp("sweep")
    axes = ["alignment=none,random", "evaluation.grid=3,5", "hydra.launcher.array_parallelism=2"]
    return folder, ended(sweep(slurm, folder, *axes))


def sweep(slurm: Slurm, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a sweep in `folder`, where it keeps its store too."""
    environment = {name: value for name, value in slurm.environment.items() if not name.startswith(("LMC_", "WANDB_"))}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "lmc.app", "-m", *SMALL, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    try:
        out, err = process.communicate(timeout=500)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def until(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a sweep does."""
    end = time.monotonic() + 300
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the sweep does not do what the test waits for"
        time.sleep(0.05)


def newest(folder: Path) -> Path:
    return max(folder.glob("multirun/*-*-*/*"))


def logs(folder: Path) -> list[str]:
    """What each job of the only sweep has logged."""
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("multirun/*-*-*/*/*/lmc.log"))]


def history(folder: Path) -> list[str]:
    """The whole lines of the history of the network that is being trained."""
    try:
        text = "".join(
            path.read_text(encoding="utf-8") for path in folder.glob("multirun/store/endpoints/*.partial/h*")
        )
    except FileNotFoundError:  # published in this moment
        return []
    return text.splitlines()[: text.count("\n")]


def continued_without_loss(folder: Path, log: str, seen: list[str]) -> None:
    """Assert that the network of which `seen` had been trained went on from there, one epoch at most trained again.

    A line of the history holds the seconds that the epoch took: one that is trained again does not come out the same.
    """
    (after,) = map(int, re.findall(rf"continuing after epoch (\d+) of {EPOCHS}", log))
    assert after >= len(seen) - 1
    histories = [path.read_text(encoding="utf-8").splitlines() for path in folder.glob("multirun/store/endpoints/*/h*")]
    (whole,) = (lines for lines in histories if lines[0] == seen[0])
    kept = min(after, len(seen))
    assert whole[:kept] == seen[:kept]
    assert [json.loads(line)["epoch"] for line in whole] == list(range(1, EPOCHS + 1))


def test_jobs_of_an_array_share_what_they_train_and_end_in_a_report(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    (script,) = [path.read_text(encoding="utf-8") for path in newest(folder).glob(".submitit/*/*_submission.sh")]
    assert "\nexport OMP_NUM_THREADS=$SRUN_CPUS_PER_TASK\n" in script
    options = set(re.findall(r"^#SBATCH (\S+)$", script, re.MULTILINE))
    assert options >= {"--array=0-3%2", "--cpus-per-task=1", "--job-name=lmc", "--mem=8GB", "--time=240"}
    assert options >= {"--signal=USR2@120", "--nodes=1", "--ntasks-per-node=1"}
    assert len(list(folder.glob("multirun/store/endpoints/*"))) == 2
    found = "".join(logs(folder))
    for network in (0, 1):
        assert found.count(f"network {network}: {EPOCHS} steps") == 1
    assert "did not end" not in done.stdout
    assert {path.name for path in newest(folder).glob("report.*")} == {
        f"report.{n}" for n in ("md", "csv", "tex", "html")
    }
    assert len(list(newest(folder).glob("*/summary.json"))) == 4


def test_a_failed_job_does_not_take_the_others_or_the_report_with_it(trained, slurm: Slurm):
    folder, _ = trained
    done = ended(sweep(slurm, folder, f"training.epochs={EPOCHS},abc"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("lmc: training.epochs='abc' cannot be used")
    assert "Traceback" not in done.stderr
    assert (newest(folder) / "0" / "summary.json").exists()
    report = (newest(folder) / "report.md").read_text(encoding="utf-8")
    assert f"{newest(folder) / '1'}: did not end" in report


def test_what_slurm_refuses_is_one_line(slurm: Slurm, tmp_path: Path):
    done = ended(sweep(slurm, tmp_path, "hydra.launcher.partition=none", "seed=0,1"))
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()  # sbatch speaks for itself too
    assert last.startswith("lmc: Slurm refuses the jobs: sbatch: error: invalid partition specified: none; ")
    assert "Traceback" not in done.stderr


def test_a_job_that_must_leave_off_is_queued_again_and_goes_on(slurm: Slurm, tmp_path: Path):
    process = sweep(slurm, tmp_path)
    until(lambda: len(history(tmp_path)) >= 2, process)
    (job,) = slurm("squeue", "-h", "-o", "%i").split()
    seen = history(tmp_path)
    slurm("scancel", "--signal=USR2", job)
    until(lambda: slurm("squeue", "-h", "-o", "%T") == "PENDING", process)
    assert "Restarts=1" in slurm("scontrol", "show", "job", job)
    # Slurm would hold it for two minutes. Some it must: it counts the age of credentials in whole seconds, and one made
    # in the second in which that of the first start was revoked would be taken for revoked too.
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    done = ended(process)
    assert done.returncode == 0, done.stderr
    (log,) = logs(tmp_path)
    assert f"Requeued job {job} " in log
    continued_without_loss(tmp_path, log, seen)
    assert (newest(tmp_path) / "report.md").exists()


def test_when_a_job_is_killed_the_one_that_waits_for_it_goes_on(slurm: Slurm, tmp_path: Path):
    process = sweep(slurm, tmp_path, "alignment=none,random")
    waits = "another process is making endpoints"
    until(lambda: len(history(tmp_path)) >= 2 and any(waits in log for log in logs(tmp_path)), process)
    seen = history(tmp_path)
    waiting = [waits in log for log in logs(tmp_path)]
    killed = waiting.index(False)
    kill(slurm, killed)
    done = ended(process)
    assert done.returncode == 1
    assert re.fullmatch(
        rf"lmc: 1 of 2 jobs died \(\d+_{killed} FAILED\), see \S+\.err; start the sweep again: .*\n", done.stderr
    ), done.stderr
    continued_without_loss(tmp_path, logs(tmp_path)[1 - killed], seen)
    report = (newest(tmp_path) / "report.md").read_text(encoding="utf-8")
    assert f"{newest(tmp_path) / str(killed)}: did not end" in report
    assert (newest(tmp_path) / str(1 - killed) / "summary.json").exists()


def kill(slurm: Slurm, task: int) -> None:
    """End the process of a job of the only array as a machine that fails does: without any notice."""
    wanted = {f"SLURM_ARRAY_TASK_ID={task}", f"SLURM_CONF={slurm.environment['SLURM_CONF']}", "SUBMITIT_EXECUTOR=slurm"}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = set((folder / "environ").read_bytes().decode(errors="replace").split("\0"))
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # has ended, or is not ours
            continue
        if wanted <= environment and command[0] == sys.executable:
            found.append(int(folder.name))
    assert found
    for number in found:
        os.kill(number, signal.SIGKILL)
