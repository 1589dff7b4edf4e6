from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lmc import seeding, state
from lmc.errors import UserError
from lmc.symmetry import transform
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.transform import LinearMap
from tests.symmetry.test_structures import CASES

PLAIN = [name for name, case in CASES.items() if all(outer == () for _, outer in case.groups)]


def network(name: str) -> tuple[nn.Module, Symmetry]:
    with seeding.isolated(0, name):
        model = CASES[name].make().eval().double()
    return model, discover(model, torch.zeros(2, *CASES[name].shape, dtype=torch.float64))


def matrices(permutation: Permutation) -> dict[str, Tensor]:
    return {name: torch.eye(len(p), dtype=torch.float64)[p] for name, p in permutation.items()}


@pytest.mark.parametrize("name", PLAIN)
def test_permutation_matrices_do_what_the_permutation_does(name: str):
    model, symmetry = network(name)
    permutation = Permutation.random(symmetry, seeding.generator(0, name))
    weights = state.of_model(model)
    mapped = LinearMap.symmetric(symmetry, matrices(permutation)).apply(weights)
    for tensor, expected in permutation.apply(weights).items():
        assert torch.allclose(mapped[tensor], expected), tensor


LINEAR = {
    "dense layers": ((3,), [nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2)]),
    "convolutions": ((2, 5, 5), [nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 3, 3), nn.Flatten(), nn.Linear(75, 2)]),
    "channels last": ((2, 4, 4), [nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)]),
}


@pytest.mark.parametrize("name", LINEAR)
def test_an_invertible_map_keeps_a_linear_network(name: str):
    """What makes units is mixed by M and what reads them by its inverse: without nonlinearities nothing changes."""
    shape, layers = LINEAR[name]
    with seeding.isolated(0, name):
        model = nn.Sequential(*layers).double()
        inputs = torch.randn(3, *shape, dtype=torch.float64)
        symmetry = discover(model, inputs)
        made = {n: torch.randn(g.size, g.size, dtype=torch.float64) for n, g in symmetry.groups.items()}
    assert made
    mapped = LinearMap(symmetry, {n: (m, torch.linalg.inv(m)) for n, m in made.items()})
    outputs = functional_call(model, mapped.apply(state.of_model(model)), (inputs,))
    assert torch.allclose(outputs, model(inputs))
    # Control: the transpose is not the inverse.
    wrong = LinearMap.symmetric(symmetry, made).apply(state.of_model(model))
    assert not torch.allclose(functional_call(model, wrong, (inputs,)), model(inputs))


def test_transforms_are_read_as_they_were_written(tmp_path: Path):
    _, symmetry = network("concatenation")
    permutation = Permutation.random(symmetry, seeding.generator(0, "saved"))
    transform.save(permutation, tmp_path)
    assert transform.load(tmp_path, symmetry) == permutation
    soft = LinearMap.symmetric(symmetry, {n: torch.rand(g.size, g.size) for n, g in symmetry.groups.items()})
    (tmp_path / "soft").mkdir()
    transform.save(soft, tmp_path / "soft")
    found = transform.load(tmp_path / "soft", symmetry)
    assert all(torch.equal(a, b) for name in soft for a, b in zip(soft[name], found[name], strict=True))
    _, other = network("residual stream")
    with pytest.raises(UserError, match="no linear map of this network"):
        transform.load(tmp_path / "soft", other)


def test_units_inside_blocks_are_refused():
    _, symmetry = network("packed attention")
    maps = {name: torch.eye(group.size) for name, group in symmetry.groups.items()}
    with pytest.raises(UserError, match="a linear map is not defined for units inside blocks"):
        LinearMap.symmetric(symmetry, maps)
