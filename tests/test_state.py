"""State dicts: exact ends, safe files."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lmc import state
from lmc.errors import UserError


@pytest.fixture
def pair() -> tuple[state.State, state.State]:
    generator = torch.Generator().manual_seed(0)
    first, second = ({"w": torch.randn(3, 4, generator=generator), "count": torch.tensor(number)} for number in (1, 2))
    return first, second


def test_interpolation_is_exact_at_the_ends(pair: tuple[state.State, state.State]):
    first, second = pair
    assert torch.equal(state.interpolate(first, second, 0.0)["w"], first["w"])
    assert torch.equal(state.interpolate(first, second, 1.0)["w"], second["w"])


def test_interpolation_is_linear_and_takes_integers_from_the_first(pair: tuple[state.State, state.State]):
    first, second = pair
    middle = state.interpolate(first, second, 0.25)
    torch.testing.assert_close(middle["w"], 0.75 * first["w"] + 0.25 * second["w"])
    assert int(middle["count"]) == 1


def test_mean_is_that_of_all(pair: tuple[state.State, state.State]):
    first, second = pair
    found = state.mean([first, second, second])
    torch.testing.assert_close(found["w"], (first["w"] + 2 * second["w"]) / 3)


def test_saved_states_come_back(tmp_path: Path, pair: tuple[state.State, state.State]):
    first, _ = pair
    state.save({**first, "view": first["w"].T}, tmp_path / "s.safetensors")
    found = state.load(tmp_path / "s.safetensors")
    assert torch.equal(found["w"], first["w"])
    assert torch.equal(found["view"], first["w"].T)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_pt_files_with_tensors_are_read(tmp_path: Path, pair: tuple[state.State, state.State], wrap):
    torch.save(wrap(pair[0]), tmp_path / "s.pt")
    assert torch.equal(state.load(tmp_path / "s.pt")["w"], pair[0]["w"])


def test_a_pt_file_that_holds_code_is_refused(tmp_path: Path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(UserError, match="holds more than tensors, and loading it would run code"):
        state.load(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["s.pt", "s.safetensors"])
def test_damaged_files_are_one_clear_line(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"\x08\x00\x00\x00 not a checkpoint")
    with pytest.raises(UserError, match="save it again") as caught:
        state.load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_clear_line(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        state.load(tmp_path / "absent.pt")


def test_the_first_tensor_that_differs_is_named(pair: tuple[state.State, state.State]):
    first, _ = pair
    state.check_fits(first, first, "x")
    with pytest.raises(UserError, match=r"x is of another architecture: tensor 'w' has shape \(2,\), .* \(3, 4\)"):
        state.check_fits({**first, "w": torch.zeros(2)}, first, "x")
    with pytest.raises(UserError, match="has no tensor 'w'"):
        state.check_fits({"count": first["count"]}, first, "x")
    with pytest.raises(UserError, match="has a tensor 'more' that the network lacks"):
        state.check_fits({**first, "more": torch.zeros(2)}, first, "x")
