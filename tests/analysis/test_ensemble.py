"""Ensembles of a path and of the checkpoints of a training."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lmc.analysis.ensemble import Ensemble
from lmc.curve.linear import Linear
from lmc.endpoints.base import Moments
from lmc.seeding import isolated
from lmc.state import State, of_model
from tests.analysis.subjects import data, subject


def drawn(seed: int) -> State:
    with isolated(seed, "ensemble"):
        return of_model(network())


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def test_the_checkpoints_of_each_network_are_an_ensemble(tmp_path: Path) -> None:
    dataset = data(classes=3, test=30)
    trained = [[drawn(10 * seed + number) for number in range(3)] for seed in range(2)]
    ends = [states[-1] for states in trained]
    path = Linear().path(*ends, None)
    of = subject(
        network(), ends, path, dataset, trained=trained, moments=Moments("epoch", (1.0, 3.0, 5.0))
    )  # fmt: skip
    steps: list[object] = []
    option = Ensemble(points=3)
    findings = option(of, tmp_path, steps.append)
    assert len(steps) == option.steps(of) == 3 + 2 * 3
    for end, states in zip(("fixed", "moving"), trained, strict=True):
        losses = [
            finding.value
            for finding in findings
            if (finding.what, finding.metric, finding.more.get("end")) == ("checkpoint_ensemble", "loss", end)
        ]
        images = of.splits.images["test"]
        with torch.no_grad():
            predicted = torch.stack(
                [
                    torch.func.functional_call(of.model, state, (dataset.normalise(images.images),)).softmax(1)
                    for state in states
                ]
            ).mean(0)
        expected = -predicted[torch.arange(len(images)), images.labels].log().mean().item()
        assert losses == [pytest.approx(expected, rel=1e-5)]


def test_without_earlier_checkpoints_there_is_none(tmp_path: Path) -> None:
    ends = [drawn(0), drawn(1)]
    found = Ensemble(points=3)(
        subject(network(), ends, Linear().path(*ends, None), data(classes=3, test=9)), tmp_path, lambda numbers: None
    )
    assert {finding.what for finding in found} == {"path_ensemble", "end_ensemble", "member"}
