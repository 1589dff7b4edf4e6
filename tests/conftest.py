"""What all tests share."""

import os
from pathlib import Path

import pytest
import torch

# The workers of pytest -n share the cores.
torch.set_num_threads(max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


@pytest.fixture(scope="session")
def conf() -> Path:
    """The folder of the configuration."""
    from lmc.config import conf_dir

    return Path(conf_dir())


@pytest.fixture(autouse=True)
def _the_same_draws_in_any_order() -> None:
    """Networks that a test makes by their constructors alone are the same whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_keys_and_no_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests neither reach Weights & Biases nor write outside their own folder, whatever the environment says."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "LMC_")) and name != "LMC_TEST_DATA"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LMC_STORE", str(tmp_path / "store"))
