"""The option: its files and findings are what the comparison of the networks as trained gives."""

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import nn

from lmc.analysis.representation_similarity import RepresentationSimilarity
from lmc.evaluation.representation_similarity import layer_similarities
from lmc.seeding import isolated
from lmc.state import of_model
from tests.analysis.subjects import data, subject


def network(seed: int) -> nn.Module:
    with isolated(seed, "network"):
        layers = (nn.Flatten(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
        return nn.Sequential(*layers)


def test_files_and_findings_are_those_of_the_networks_as_trained(tmp_path: Path) -> None:
    trained, other = [of_model(network(seed)) for seed in (1, 2)], of_model(network(3))
    dataset = data((1, 3, 3), 2, train=60)
    of = subject(network(0), [other, other], dataset=dataset, trained=[(other, trained[0]), (trained[1],)])
    analysis = RepresentationSimilarity(images=50, batch_size=20, memory=1e-9)
    steps: list[Mapping[str, float]] = []
    findings = analysis(of, tmp_path, steps.append)
    assert len(steps) == analysis.steps(of) == 2 * 3
    expected = layer_similarities(of.model, of.symmetry, (trained[0], trained[1]), dataset, examples=50)
    with (tmp_path / "layers.csv").open(newline="") as file:
        layers = list(csv.DictReader(file))
    assert [row["layer"] for row in layers] == ["1", "3"]
    for metric in ("cka", "svcca", "svcca_squared", "procrustes"):
        values = [getattr(equal, metric) for equal in expected.equal]
        assert [float(row[metric]) for row in layers] == pytest.approx(values, abs=1e-6)
        found = {found.more.get("layer"): found.value for found in findings if found.metric == metric}
        assert found["1"] == float(layers[0][metric])
        if metric != "cka":
            assert found[None] == pytest.approx(sum(values) / 2, abs=1e-6)
    with (tmp_path / "cka.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["fixed"], row["moving"]) for row in rows] == [("1", "1"), ("1", "3"), ("3", "1"), ("3", "3")]
    assert [float(row["cka"]) for row in rows] == pytest.approx(expected.cka.flatten().tolist(), abs=1e-6)
    (layers_found,) = [found.value for found in findings if found.what == "layers_found"]
    assert layers_found == expected.found
    assert {found.examples for found in findings} == {50}
