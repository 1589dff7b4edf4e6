"""The option: its files say what its findings say, it goes on after a kill, and it looks at the networks as trained."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lmc import state
from lmc.analysis.base import Finding, Subject
from lmc.analysis.convergent_learning import ConvergentLearning
from lmc.errors import UserError
from lmc.seeding import isolated
from lmc.state import State, of_model
from lmc.symmetry.discover import discover
from tests.analysis.subjects import data, subject

SETTINGS = {"penalties": (0.3, 0.05), "clusters": (0.5,)}


def network(seed: int) -> nn.Module:
    with isolated(seed, "network"):
        layers = (nn.Flatten(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
        return nn.Sequential(*layers)


@pytest.fixture
def of() -> Subject:
    trained = [of_model(network(seed)) for seed in (1, 2)]
    trained[0]["1.bias"][2] = -100.0
    wrong = [of_model(network(seed)) for seed in (3, 4)]  # what the alignment made of them does not matter
    return subject(
        network(0), wrong, dataset=data((1, 3, 3), 2, train=60), trained=[(wrong[0], trained[0]), (trained[1],)]
    )


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def value(findings: list[Finding], what: str, metric: str, **more: object) -> float:
    (found,) = [f.value for f in findings if (f.what, f.metric, dict(f.more)) == (what, metric, more)]
    return found


def test_findings_are_the_means_of_the_files(of: Subject, tmp_path: Path) -> None:
    steps: list[Mapping[str, float]] = []
    analysis = ConvergentLearning(**SETTINGS)
    findings = analysis(of, tmp_path, steps.append)
    assert len(steps) == analysis.steps(of) == 2 * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(analysis.files)
    units, tensors = read(tmp_path / "units.csv"), state.load(tmp_path / "units.safetensors")
    assert len(units) == 2 * (6 + 5)
    fixed = [row for row in units if row["end"] == "fixed"]
    matched = [float(row["correlation"]) for row in fixed]
    assert value(findings, "one_to_one", "correlation") == pytest.approx(np.mean(matched))
    assert value(findings, "units", "dead", end="fixed") == pytest.approx(1 / 11)
    assert value(findings, "units", "dead", end="moving", layer="3") == 0
    highest = [float(row["highest"]) for row in units if row["end"] == "moving" and row["layer"] == "3"]
    assert value(findings, "semi_matching", "correlation", end="moving", layer="3") == pytest.approx(np.mean(highest))
    chosen = [int(row["chosen"]) for row in units if row["end"] == "moving"]
    assert value(findings, "semi_matching", "never_chosen", end="moving") == np.mean(np.array(chosen) == 0)
    assert value(findings, "semi_matching", "chosen_again", end="moving") == np.mean(np.array(chosen) > 1)
    for row in fixed:
        between = tensors[f"between/{row['layer']}"]
        assert between[int(row["unit"]), int(row["match"])].item() == pytest.approx(float(row["correlation"]), abs=1e-6)
        partner = units[
            [(u["layer"], u["end"], u["unit"]) for u in units].index((row["layer"], "moving", row["match"]))
        ]
        assert (partner["match"], partner["correlation"]) == (row["unit"], row["correlation"])
    predicted = read(tmp_path / "prediction.csv")
    assert {(row["layer"], row["targets"]) for row in predicted} == {("1", "5"), ("3", "5")}
    errors = [float(row["error"]) for row in predicted if row["penalty"] == "0.05"]
    assert value(findings, "prediction_error", "lasso", penalty=0.05) == pytest.approx(np.mean(errors))
    best, least = (value(findings, "prediction_error", method) for method in ("best_unit", "least_squares"))
    assert 0 < least < best < value(findings, "prediction_error", "one_to_one")
    alone = [1 - c**2 for c, row in zip(matched, fixed, strict=True) if int(row["live"])]
    assert value(findings, "prediction_error", "one_to_one") == pytest.approx(np.mean(alone))
    (first, second) = read(tmp_path / "clusters.csv")
    assert (first["units"], first["clusters"], second["units"], second["clusters"]) == ("11", "3", "10", "2")
    labels = tensors["clusters_0.5/1"]
    assert (labels == -1).nonzero().flatten().tolist() == [2]
    weighed = (11 * float(first["mixed"]) + 10 * float(second["mixed"])) / 21
    assert value(findings, "clusters", "mixed") == pytest.approx(weighed)
    assert all(np.isfinite(found.value) for found in findings)


def test_a_killed_attempt_is_continued_and_nothing_is_computed_twice(
    of: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    analysis = ConvergentLearning(**SETTINGS)
    expected = analysis(of, whole, lambda numbers: None)

    def interrupt(numbers: Mapping[str, float]) -> None:
        if numbers["group"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analysis(of, killed, interrupt)
    seen: list[str] = []
    compare = ConvergentLearning._compare
    monkeypatch.setattr(
        ConvergentLearning,
        "_compare",
        lambda self, found, *rest: (seen.append(found.group), compare(self, found, *rest)),
    )
    steps: list[Mapping[str, float]] = []
    assert analysis(of, killed, steps.append) == expected
    assert seen == ["3"]
    assert len(steps) == analysis.steps(of)
    for name in analysis.files:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in killed.iterdir()) == sorted(analysis.files)


def silenced(own: State) -> State:
    return {name: torch.full_like(t, -1.0) if name.endswith("bias") else torch.zeros_like(t) for name, t in own.items()}


def test_networks_without_a_live_unit_have_numbers_too(tmp_path: Path) -> None:
    model = network(0)
    nets = [silenced(of_model(model)), of_model(network(1))]
    for number, ends in enumerate((nets, nets[::-1], [nets[0], nets[0]])):
        (folder := tmp_path / str(number)).mkdir()
        # Of networks whose units are all dead, nothing could be discovered by running them.
        of = subject(
            model, ends, dataset=data((1, 3, 3), 2, train=60), symmetry=discover(model, torch.zeros(2, 1, 3, 3))
        )
        steps: list[Mapping[str, float]] = []
        findings = ConvergentLearning(**SETTINGS)(of, folder, steps.append)
        assert len(steps) == 8
        assert all(np.isfinite(found.value) for found in findings)
        assert value(findings, "one_to_one", "correlation") == 0
        dead = [value(findings, "units", "dead", end=end) for end in ("fixed", "moving")]
        assert dead == [float(end is nets[0]) for end in ends]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalties": ()}, r"penalties=\[\]: give at least one"),
        ({"penalties": (0.1, 0.1)}, "all different"),
        ({"penalties": (0.0, 0.1)}, "above 0"),
        ({"clusters": (1.5,)}, r"clusters=\[1.5\].*at most 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ConvergentLearning(**settings)
