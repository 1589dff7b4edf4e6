"""Random numbers as an argument: every generator is derived from a seed and a list of labels.

Nothing in lmc draws from a global generator, so the jobs of a sweep can share a process and a resumed run draws the
same numbers as an unbroken one.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *labels: str | int) -> int:
    """Return a seed in [0, 2**63) that depends on `seed` and all `labels`; the same on every machine and version.

    `derive(0, "init")` and `derive(0, "data")` are unrelated streams; 0 is a seed like any other.
    """
    text = json.dumps([int(seed), *labels], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a fresh `torch.Generator` on `device`, seeded with `derive(seed, *labels)`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *labels))


@contextmanager
def isolated(seed: int, *labels: str | int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Run a block whose draws from torch's global generators depend on `seed` and `labels` alone.

    For code that cannot be handed a generator (the constructors of `torch.nn`, dropout). The generators are that of
    the CPU and, where `device` is a CUDA device, that one's. The global state is put back after.
    """
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(derive(seed, *labels))
        for each in devices:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(derive(seed, *labels))
        yield
