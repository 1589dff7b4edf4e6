from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from lmc import config, seeding

CONF = Path(__file__).resolve().parents[2] / "conf" / "architecture"


@pytest.fixture(scope="session")
def network() -> Callable[..., nn.Module]:
    """Build an option of conf/architecture with some settings changed, with weights that depend on the seed alone."""

    def build(
        option: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, seed: int = 0, **settings: Any
    ) -> nn.Module:
        node = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"), resolve=True) | settings
        with seeding.isolated(seed, "architecture"):
            return config.build(node, "architecture", input_shape=shape, classes=classes)

    return build


@pytest.fixture
def photographs() -> torch.Tensor:
    """Noise of the shape of a small batch from CIFAR-10."""
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
