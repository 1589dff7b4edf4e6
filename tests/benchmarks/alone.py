"""Memory of work that has a process of its own, since a process never forgets its peak."""

import os
import re
import subprocess
import sys
from pathlib import Path

_TAIL = "\nfrom tests.benchmarks.alone import high_water\nprint(high_water())"


def high_water() -> float:
    """MiB that this process has held at most (Linux); unlike ru_maxrss, without what its parent held at the fork."""
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(peak) / 1024


def peak_of(work: str) -> float:
    """Return the peak, in MiB, of a process that runs the Python text `work` on one thread.

    What is freed goes back to the system at once: what the allocator keeps varies from run to run.
    """
    head = "import torch\ntorch.set_num_threads(1)\n"
    command = [sys.executable, "-c", head + work + _TAIL]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "100000"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600, env=environment)
    return float(done.stdout)
