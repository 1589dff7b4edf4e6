"""Every kind of file that a network may come in, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmc import state as states
from lmc.config import build
from lmc.endpoints.base import EARLIER_FILE, WEIGHTS_FILE, Ingredients
from lmc.endpoints.checkpoint import Checkpoint
from lmc.errors import UserError
from lmc.state import of_model
from tests.endpoints.small import contents, convnet, data, mlp, sgd

FILES = {
    "a.safetensors": lambda state, path: states.save(state, path),
    "a.pt": torch.save,
    "a.pth": torch.save,
    "old.pt": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "wrapped.ckpt": lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path),
    "model.pth": lambda state, path: torch.save({"model": state, "optimizer": {"lr": 0.1}}, path),
}


def brought(file: Path, model: nn.Module, folder: Path) -> dict[str, bytes]:
    kind = Checkpoint(files=(str(file), str(file)), earlier=((str(file),), (str(file),)))
    kind.check(model, data(), sgd(), (0, 1))
    folder.mkdir()
    kind.make(1, Ingredients(lambda: model, data(), sgd(), (0, 1)), folder, lambda record: None)
    found = [contents(states.load(folder / name)) for name in (WEIGHTS_FILE, EARLIER_FILE.format(0))]
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("network", [mlp, convnet])
def test_every_kind_of_file_is_read(name: str, network: Any, tmp_path: Path):
    model = network()
    FILES[name](of_model(model), tmp_path / name)
    assert brought(tmp_path / name, model, tmp_path / "made") == contents(of_model(model))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(kind: torch.dtype, tmp_path: Path):
    half = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in of_model(mlp()).items()}
    torch.save(half, tmp_path / "a.pt")
    wide = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in half.items()}
    assert brought(tmp_path / "a.pt", mlp(), tmp_path / "made") == contents(wide)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "lmc.architecture.torchvision.torchvision", "name": "resnet18"},
        {"_target_": "lmc.architecture.timm.timm", "name": "vit_tiny_patch16_224"},
    ],
    ids=["torchvision", "timm"],
)
def test_networks_of_the_libraries_are_read(node: dict[str, str], tmp_path: Path):
    model = build(node, "architecture", input_shape=(3, 32, 32), classes=10)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert brought(tmp_path / "a.pt", model, tmp_path / "made") == contents(of_model(model))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: mlp(), "holds more than tensors, and loading it would run code"),
        (lambda: {"weights": 3}, "is not a state dict"),
        (lambda: of_model(convnet()), "has no tensor 'hidden.0.weight'"),
    ],
    ids=["pickled module", "no tensors", "another architecture"],
)
def test_what_is_no_network_of_the_architecture_is_refused(content: Any, message: str, tmp_path: Path):
    torch.save(content(), tmp_path / "a.pt")
    with pytest.raises(UserError, match=message):
        brought(tmp_path / "a.pt", mlp(), tmp_path / "made")
