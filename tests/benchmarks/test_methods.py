"""Every alignment on one fixed pair: seconds and memory, beside weight matching; see `extra_info`."""

import gc
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytest_benchmark.fixture import BenchmarkFixture

from lmc import config
from lmc.alignment.problem import Problem
from lmc.alignment.weight_matching import WeightMatching
from lmc.architecture.mlp import MLP
from lmc.seeding import generator, isolated
from lmc.state import State, of_model
from lmc.symmetry.discover import discover
from tests.benchmarks.test_alignment import peak_memory

FOLDER = Path(config.conf_dir()) / "alignment"
OPTIONS = sorted({path.stem for path in FOLDER.glob("*.yaml")} - {"transformer_matching"})
IMAGES = 5000


def network() -> MLP:
    return MLP(input_shape=(1, 28, 28), classes=10, width=512, depth=3, norm="none")


def pair() -> tuple[State, State, Problem]:
    """Two random MLPs with 3 x 512 hidden units, and 5,000 random images."""
    states = []
    for seed in (0, 1):
        with isolated(seed, "benchmark"):
            states.append(of_model(network()))
    images = torch.randn(IMAGES, 1, 28, 28, generator=generator(0, "images"))
    labels = torch.randint(10, (IMAGES,), generator=generator(0, "labels"))
    model = network()
    problem = Problem(
        model,
        discover(model, images[:2]),
        0,
        torch.device("cpu"),
        lambda size: images.split(size),
        lambda size: zip(images.split(size), labels.split(size), strict=True),
    )
    return states[0], states[1], problem


def measured(name: str) -> dict[str, float]:
    """Run a method once in this process, which has run nothing else that could have left memory for it."""
    fixed, moving, problem = pair()
    node: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    method = config.build(node, "alignment")
    gc.collect()
    with peak_memory() as peak:
        started = time.perf_counter()
        method(fixed, moving, problem)
        seconds = time.perf_counter() - started
    started = time.perf_counter()
    WeightMatching(restarts=1)(fixed, moving, problem)
    beside = time.perf_counter() - started
    return {"seconds": seconds, "over one descent of weight matching": seconds / beside, "peak MiB": peak[0]}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_method(benchmark: BenchmarkFixture, name: str) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        benchmark.extra_info["method"] = benchmark.pedantic(lambda: alone.submit(measured, name).result(), rounds=1)
