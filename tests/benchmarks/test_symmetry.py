"""Tracing and discovery: seconds and memory of whole networks, each in a process of its own; see `extra_info`."""

import json
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from lmc.inspection.network import build
from lmc.inspection.sources.request import Request
from lmc.inspection.sources.torchvision import names
from lmc.symmetry.discover import discover
from lmc.symmetry.trace import trace


def inspected(*arguments: str) -> dict[str, Any]:
    """What lmc-symmetry prints in a fresh process, with what importing torch and building the network cost."""
    command = [sys.executable, "-m", "lmc.inspection.command", *arguments, "--no-verify", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("name", "limit"), [("torchvision:resnet50", 5), ("torchvision:vit_b_16", 10)])
def test_a_network_is_discovered(benchmark: BenchmarkFixture, name: str, limit: float) -> None:
    found = benchmark.pedantic(inspected, (name,), rounds=1)
    seconds, peak = found["seconds"]["discover"], found["peak_memory_bytes"] / 2**30
    benchmark.extra_info["discovery"] = {"seconds": seconds, "peak GiB": peak}
    assert seconds < limit


def test_seven_billion_parameters_need_no_weights(benchmark: BenchmarkFixture) -> None:
    """Llama 2 7B's sizes: 27 GB in float32."""
    sizes = ["hidden_size=4096", "intermediate_size=11008", "num_hidden_layers=32", "num_attention_heads=32"]
    found = benchmark.pedantic(
        inspected, ("transformers:LlamaForCausalLM", *sizes, "vocab_size=32000", "--meta"), rounds=1
    )
    peak = found["peak_memory_bytes"] / 2**30
    benchmark.extra_info["discovery"] = {"seconds": found["seconds"]["discover"], "peak GiB": peak}
    assert found["parameters"] == 6_738_415_616
    assert peak < 4


def test_all_of_torchvision_is_discovered(benchmark: BenchmarkFixture) -> None:
    """All classification networks, without weights, in one process; and how much of it is torch.export."""

    def run() -> tuple[float, float]:
        both, tracing = 0.0, 0.0
        for name in names():
            network = build(Request(f"torchvision:{name}", {}, None, 0, True))
            started = time.perf_counter()
            discover(network.model, network.example)
            both += time.perf_counter() - started
        for name in names()[::10]:
            network = build(Request(f"torchvision:{name}", {}, None, 0, True))
            started = time.perf_counter()
            trace(network.model, network.example)
            tracing += time.perf_counter() - started
        return both, tracing

    torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))  # its first use imports much
    both, tracing = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["all"] = {"networks": len(names()), "seconds": both, "tracing every tenth": tracing}
    assert both < 8 * 60
