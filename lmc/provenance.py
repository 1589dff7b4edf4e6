"""What made a result: versions of packages, the commit, and the hardware."""

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_RECORDED_PACKAGES = ("lmc", "torch", "torchvision", "numpy", "scipy")


@cache
def provenance() -> dict[str, Any]:
    """Return the versions of Python and of what computes ("versions"), and the commit of a checkout ("commit")."""
    versions = {name: metadata.version(name) for name in _RECORDED_PACKAGES}
    return {"versions": {"python": platform.python_version(), **versions}, "commit": _commit()}


def hardware(device: str) -> str:
    """Return what computes on `device`, "cpu" or "cuda:0", for people: "2 cores of an AMD EPYC 7B13", "NVIDIA H200"."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} {'core' if cores == 1 else 'cores'}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of a source checkout of lmc, or None for an installed copy."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
