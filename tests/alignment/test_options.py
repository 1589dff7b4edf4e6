from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from lmc import config
from lmc.alignment import align
from lmc.alignment.activation_matching import ActivationMatching
from lmc.alignment.none import NoAlignment
from lmc.alignment.problem import Problem
from lmc.errors import UserError
from lmc.seeding import isolated
from lmc.state import State, of_model
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry

FOLDER = Path(__file__).parents[2] / "conf" / "alignment"
OPTIONS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def node(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return content


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with isolated(0, "test"):
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))


@pytest.fixture(scope="module")
def symmetry(model: nn.Module) -> Symmetry:
    return discover(model, torch.zeros(2, 3, 2, 2))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(64, 3, 2, 2, generator=torch.Generator().manual_seed(0))


class Stream(nn.Module):
    """A residual stream with norms, which even the methods for transformers accept."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.before, self.one, self.two = (
            nn.Linear(12, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 8),
            nn.Linear(8, 6),
        )
        self.after, self.leave = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.enter(images.flatten(1))
        x = x + self.two(torch.relu(self.one(self.before(x))))
        out: torch.Tensor = self.leave(self.after(x))
        return out


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_returns_a_transform_of_the_symmetry(images: torch.Tensor, name: str) -> None:
    assert set(config.settings(node(name), "alignment")) == set(node(name))
    brief = {"images": 64, "steps": 3, "sweeps": 5}
    settings = {key: brief.get(key, value) for key, value in node(name).items()}
    method = config.build(settings, "alignment")
    assert method == type(method)(**{k: v for k, v in settings.items() if k not in ("_target_",)})
    with isolated(0, "test"):
        model = Stream()
    symmetry = discover(model, images[:2])
    method.check(symmetry)
    fixed = of_model(model)
    moving = Permutation.random(symmetry, torch.Generator().manual_seed(1)).apply(fixed)
    steps: list[Mapping[str, float]] = []

    def labelled(size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return ((batch, torch.zeros(len(batch), dtype=torch.int64)) for batch in images.split(size))

    problem = Problem(model, symmetry, 0, torch.device("cpu"), lambda size: images.split(size), labelled)
    matching = method(fixed, moving, problem, steps.append)
    assert isinstance(matching.transform, Permutation) or method.is_soft
    assert {name: t.shape for name, t in matching.transform.apply(moving).items()} == symmetry.shapes
    assert isinstance(matching.objective, float)
    assert all(isinstance(value, int | float) for record in [*matching.trace, *steps] for value in record.values())
    assert isinstance(method.needs_data, bool)


def test_options_exist() -> None:
    assert {"none", "activation_matching", "weight_matching"} <= set(OPTIONS)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("weight_matching", "restarts", 0),
        ("weight_matching", "order", "sideways"),
        ("weight_matching", "start", "middle"),
        ("weight_matching", "max_sweeps", -1),
        ("weight_matching", "tolerance", -1e-3),
        ("activation_matching", "images", 0),
        ("activation_matching", "kind", "both"),
        ("activation_matching", "similarity", "angle"),
        ("activation_matching", "batch_size", 0),
    ],
)
def test_unusable_settings_are_named(name: str, setting: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"alignment\.{setting}"):
        config.build({**node(name), setting: value}, "alignment")


def test_no_alignment_is_the_identity_and_still_checks(
    symmetries: dict[str, Symmetry], draw: Callable[[Symmetry, int], State], pose: Callable[..., Problem]
) -> None:
    symmetry = symmetries["mlp"]
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    assert NoAlignment()(fixed, moving, pose(symmetry)).permutation == Permutation.identity(symmetry)
    with pytest.raises(UserError, match=r"moving network has no tensor '1\.w'"):
        NoAlignment()(fixed, {name: tensor for name, tensor in moving.items() if name != "1.w"}, pose(symmetry))


def test_align_is_the_short_way(model: nn.Module, symmetry: Symmetry, images: torch.Tensor) -> None:
    fixed = of_model(model)
    hidden = Permutation.random(symmetry, torch.Generator().manual_seed(1))
    moving = hidden.apply(fixed)
    assert align(symmetry, fixed, moving) == hidden.inverse()
    by_activations = align(
        symmetry, fixed, moving, ActivationMatching(images=None), model=model, batches=images.split(10)
    )
    assert by_activations == hidden.inverse()
    with pytest.raises(UserError, match="no model was given"):
        align(symmetry, fixed, moving, ActivationMatching(images=None), batches=images.split(10))


@pytest.mark.parametrize("name", ["canonical_correlation", "optimal_transport", "zip"])
@pytest.mark.parametrize("case", ["packed attention", "grouped convolution"])
def test_units_inside_blocks_are_refused_at_once(
    symmetries: dict[str, Symmetry], draw: Callable[[Symmetry, int], State], name: str, case: str
):
    symmetry, method = symmetries[case], config.build(node(name), "alignment")
    with pytest.raises(UserError, match=f"{type(method).__name__} is not defined for units inside blocks"):
        method.check(symmetry)
    weights = draw(symmetry, 0)
    with pytest.raises(UserError, match="not defined for units inside blocks"):
        method(weights, weights, Problem(None, symmetry, 0, torch.device("cpu"), None))
