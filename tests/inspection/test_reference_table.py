"""The generated table of torchvision's networks says what is found today."""

from pathlib import Path

import pytest

from lmc.inspection.markdown import as_markdown
from lmc.inspection.measure import Task, measure
from lmc.inspection.network import build
from lmc.inspection.sources.request import Request
from lmc.inspection.sources.torchvision import names
from lmc.symmetry.discover import discover

TABLE = Path(__file__).parents[2] / "multirun" / "reference" / "symmetry.md"
FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32"),
    "wide_resnet50_2",
)


def rows(text: str) -> dict[str, dict[str, str]]:
    """The cells of every network, by the heads of their columns."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {cells[0].removeprefix("torchvision:"): dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}


def test_every_network_is_in_the_table_and_holds():
    found = rows(TABLE.read_text(encoding="utf-8"))
    assert list(found) == names()
    assert all(float(row["error"]) < 1e-9 < float(row["control"]) for row in found.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_symmetry_of_a_family_is_the_one_in_the_table(name: str):
    row = rows(TABLE.read_text(encoding="utf-8"))[name]
    network = build(Request(f"torchvision:{name}", meta=True))
    symmetry = discover(network.model, network.example)
    nested = sum(bool(group.outer) for group in symmetry.groups.values())
    assert row["groups"] == f"{len(symmetry.groups) - nested}{f' + {nested}' if nested else ''}"
    assert row["units that move"] == f"{sum(symmetry.units(group) for group in symmetry.groups):,}"
    assert row["equivalent"] == f"10^{symmetry.log10_size:,.0f}"


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_a_network_is_measured_as_in_the_table(name: str):
    *_, found = measure(Task(f"torchvision:{name}"))
    assert found["verification_error"] < 1e-9
    network = {"network": name, "measured_with": {}, "command": ""}
    now = rows(as_markdown([{**network, **found}]))[name]
    before = rows(TABLE.read_text(encoding="utf-8"))[name]
    for column in ("parameters", "groups", "units that move", "equivalent", "activations", "weights"):
        assert now[column] == before[column], column
