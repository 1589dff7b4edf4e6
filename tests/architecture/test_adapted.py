"""Networks of torchvision and timm: fitted to the images, reproducible, and through the whole pipeline."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lmc import seeding
from lmc.app import main
from lmc.architecture.timm import timm
from lmc.architecture.torchvision import torchvision
from lmc.errors import UserError
from lmc.state import of_model
from lmc.symmetry.discover import discover
from lmc.symmetry.verify import verify


@pytest.mark.parametrize(
    ("name", "shape", "settings"),
    [
        ("resnet18", (3, 32, 32), {"stem": "cifar"}),
        ("densenet121", (1, 28, 28), {"stem": "cifar"}),
        ("googlenet", (3, 32, 32), {"stem": "cifar"}),
        ("squeezenet1_1", (1, 8, 8), {"resize": 48}),
        ("mobilenet_v3_small", (4, 32, 32), {}),
        ("vit_b_16", (3, 32, 32), {"options": {"image_size": 32}}),
    ],
)
def test_torchvision_networks_are_fitted_to_the_images(name: str, shape: tuple[int, int, int], settings: dict):
    networks = []
    for _ in range(2):
        with seeding.isolated(0, "network"):
            networks.append(torchvision(input_shape=shape, classes=7, name=name, **settings).eval())
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = networks[0](images)
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    one, two = (of_model(network) for network in networks)
    assert all(torch.equal(one[tensor], two[tensor]) for tensor in one)


@pytest.mark.parametrize(("name", "options"), [("convnext_atto", {}), ("vit_tiny_patch16_224", {"img_size": 32})])
def test_timm_networks_are_fitted_to_the_images(name: str, options: dict):
    network = timm(input_shape=(1, 32, 32), classes=7, name=name, options=options).eval()
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_tensors_have_the_names_of_the_library():
    from torchvision.models import resnet18

    ours = torchvision(input_shape=(3, 32, 32), classes=1000)
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: tensor.shape for name, tensor in resnet18(weights=None).state_dict().items()
    }


def test_the_small_stem_keeps_the_resolution():
    network = torchvision(input_shape=(3, 32, 32), classes=10, stem="cifar")
    assert isinstance(network.maxpool, nn.Identity)
    # 32 x 32 images leave the last stage as 4 x 4, an eighth, instead of 1 x 1.
    assert (
        network.layer4(network.layer3(network.layer2(network.layer1(network.conv1(torch.zeros(1, 3, 32, 32)))))).shape[
            -1
        ]
        == 4
    )


def test_resized_images_leave_the_symmetry_as_it_is():
    network = torchvision(input_shape=(1, 8, 8), classes=3, name="squeezenet1_1", resize=40).eval()
    symmetry = discover(network, torch.zeros(2, 1, 8, 8))
    # Each of eight fire modules squeezes to one group and expands to two; the first convolution makes one.
    assert len(symmetry.groups) == 25
    assert verify(network, symmetry, torch.zeros(2, 1, 8, 8), draws=1, controls=2).error < 1e-12


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (torchvision, {"name": "resnet19"}, "did you mean resnet1"),
        (torchvision, {"name": "vit_b_16", "stem": "cifar"}, "stem=cifar is not defined for vit_b_16"),
        (torchvision, {"options": {"depth": 3}}, "options .*unexpected keyword argument 'depth'"),
        (torchvision, {"options": {"num_classes": 3}}, "options.num_classes is set by lmc"),
        (timm, {"name": "convnext_ato"}, "did you mean convnext_atto"),
    ],
)
def test_what_cannot_be_built_is_one_line(make, settings: dict, message: str):
    with pytest.raises(UserError, match=message) as caught:
        make(input_shape=(3, 32, 32), classes=10, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "architecture",
    [
        ["architecture=torchvision", "architecture.name=shufflenet_v2_x0_5", "alignment.restarts=1"],
        [
            "architecture=timm",
            "architecture.name=vit_tiny_patch16_224",
            "architecture.options={img_size: 16, depth: 1}",
        ],
    ],
    ids=["shuffled channels", "heads"],
)
def test_whole_pipeline(architecture: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Trained, matched by blocks of units and measured, the network's own library notwithstanding."""
    out = tmp_path / "run"
    monkeypatch.setenv("LMC_STORE", str(tmp_path / "store"))
    overrides = [
        "dataset=synthetic",
        "dataset.size=16",
        "budget=smoke",
        "tracker.mode=disabled",
        f"hydra.run.dir={out}",
    ]
    monkeypatch.setattr("sys.argv", ["lmc", *architecture, *overrides])
    main()
    rows = json.loads((out / "summary.json").read_text(encoding="utf-8"))["rows"]
    assert {row["path"] for row in rows if row["what"] == "barrier"} == {"aligned", "unaligned"}
