"""A sweep on Slurm in which something goes wrong: which jobs died, and the wait for those that go on.

The launcher of hydra/launcher=slurm gives up at the first job that died without a result, while the others still run.
Nothing here imports submitit unless one of its own errors has come up.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from submitit.slurm.slurm import SlurmJob

_AGAIN = "start the sweep again: what was computed is kept, a training up to its last epoch"


def concerns(error: BaseException) -> bool:
    """Tell whether `error` comes from submitit, which hands jobs to Slurm, and not from what a job computes."""
    if type(error).__module__.partition(".")[0] == "submitit":
        return "failed during processing" not in str(error)
    return _no_srun(error)


def explain(error: BaseException, sweeps: Iterable[Path]) -> str:
    """Wait until every job of the sweeps has ended, and return one line on what went wrong.

    Args:
        error: of which `concerns` is true.
        sweeps: folders of the sweeps; what submitit keeps of their jobs is in the subfolder .submitit.
    """
    jobs = [job for folder in sweeps for job in _jobs(folder)]
    for job in jobs:
        job.wait()
    dead = [job for job in jobs if not job.paths.result_pickle.exists()]
    if dead:
        states = ", ".join(f"{job.job_id} {job.state}" for job in dead)
        return f"{len(dead)} of {len(jobs)} jobs died ({states}), see {dead[0].paths.stderr}; {_AGAIN}"
    text = _said(error)
    if "not requeued" in text:
        return f"{text} Raise hydra.launcher.timeout_min or max_num_timeout, or {_AGAIN}"
    if type(error).__name__ == "UncompletedJobError":
        return f"a job died: {text}; {_AGAIN}"
    if _no_srun(error):
        return "hydra/launcher=slurm finds no srun; start the sweep where Slurm's commands are, on a login node"
    return f"Slurm refuses the jobs: {text}; see hydra.launcher with `lmc hydra/launcher=slurm --cfg hydra`"


def _no_srun(error: BaseException) -> bool:
    return type(error) is RuntimeError and 'Could not detect "srun"' in str(error)


def _jobs(sweep: Path) -> list["SlurmJob[Any]"]:
    """What was handed to Slurm by the sweep in this folder, by number."""
    if not any("#SBATCH" in path.read_text() for path in sweep.glob(".submitit/*/*_submission.sh")):
        return []
    from submitit.slurm.slurm import SlurmJob

    names = {path.parent.name for path in sweep.glob(".submitit/*/*_submitted.pkl")}
    ordered = sorted(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    return [SlurmJob(sweep / ".submitit" / "%j", name) for name in ordered]


def _said(error: BaseException) -> str:
    """The line of an error of submitit that tells most: what the command said, not that it failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[0] if lines else type(error).__name__)
