import torch
from torch import nn

from lmc.inspection.inspection import Inspection
from lmc.inspection.sources.request import Network
from lmc.inspection.table import abbreviated, as_text
from lmc.symmetry.structure import Axis, Symmetry
from lmc.symmetry.verify import Verification


def axes(*names: str) -> list[Axis]:
    return [Axis(name, dim, ()) for entry in names for name, dim in [(entry[:-1], int(entry[-1]))]]


def test_axes_are_named_by_layer_and_dimension_and_counted_where_many():
    assert abbreviated(axes("a.weight0", "a.bias0", "b.weight1")) == "a[0], b[1]"
    many = axes(*(f"block{n}.weight0" for n in range(30)))
    assert abbreviated(many) == "block0[0], block1[0], block2[0], 26 more, block29[0]"
    deep = axes("encoder.layer.3.mlp.0.weight0", "encoder.layer.3.mlp.3.weight1")
    assert abbreviated(deep) == "encoder.layer.3.mlp.{0[0], 3[1]}"
    assert abbreviated(axes("token0")) == "token[0]"


def test_the_table_names_groups_counts_and_the_proof(attention: Symmetry):
    network = Network("mine:Net", nn.Linear(5, 3), torch.zeros(1, 5))
    found = Inspection(network, attention, Verification(3e-16, 0.5), {"discover": 1.0}, 2**30)
    text = as_text(found)
    for words in (
        "mine:Net: 18 parameters, input (1, 5) float32",
        "blocks of units",
        "  /inside#2",
        "2×4   units inside",
        "4 groups; 26 of 26 hidden units move (100.0%)",
        "5 stay: the network's input",
        "changes the outputs by 3.0e-16",
        "by 5.0e-01 or more",
        "discover 1.0 s; peak memory 1.00 GiB",
    ):
        assert words in text, words
    assert max(map(len, text.splitlines())) <= 120
    unproved = as_text(Inspection(network, attention, None, {}, 0))
    assert "not verified, as you asked" in unproved


def test_units_that_stay_for_a_reason_lower_the_share(attention: Symmetry):
    network = Network("mine:Net", nn.Linear(5, 3), torch.zeros(1, 5))
    stuck = Symmetry(attention.groups, attention.shapes, attention.parameters, {**attention.fixed, "their order": 26})
    assert Inspection(network, stuck, None, {}, 0).share == 0.5
