"""Geodesics of predictions: where the information metric is known in closed form."""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

from lmc.curve.geodesic import Geodesic, jensen_shannon
from lmc.curve.points import BENDS_FILE
from lmc.curve.trained import TrainedCurve
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State, load
from lmc.training.adam import Adam
from lmc.training.loop import HISTORY_FILE
from lmc.training.recipe import Training
from lmc.training.schedule.cosine import Cosine

Ends = tuple[State, State]
Settings = Callable[..., Training]


class Stop(Exception):
    """Ends a run from within."""


class Coin(nn.Module):
    """Two classes, whatever the image; its one parameter is the logit of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(self.logit), self.logit]).expand(len(images), 2)


def _ignore(record: Mapping[str, float]) -> None:
    """For runs whose records are not looked at."""


def test_the_points_are_equally_spaced_in_the_fisher_metric(blank: Callable[[int], Dataset], tmp_path: Path) -> None:
    low, high, points = -2.0, 3.0, 5
    training = Adam(schedule=Cosine(), epochs=4, batch_size=2, learning_rate=0.2, weight_decay=0.0, precision="float32")
    ends = {"logit": torch.tensor([low])}, {"logit": torch.tensor([high])}
    curve = Geodesic(training=training, points=points)
    curve.fit(Coin(), *ends, blank(100), seed=0, folder=tmp_path, on_epoch=_ignore)
    saved = load(tmp_path / BENDS_FILE)
    logits = np.array([low, *(float(saved[f"bend{i}.logit"]) for i in range(1, points + 1)), high])
    # The Fisher-Rao distance of coins p and q is 2 |asin sqrt p - asin sqrt q|.
    angles = 2 * np.arcsin(np.sqrt(1 / (1 + np.exp(-logits))))
    steps = np.diff(angles)
    # JSD = d^2 / 8 (1 + O(d^2)): the spacing is equal up to the square of a step.
    assert steps.max() / steps.min() - 1 < steps.max() ** 2 / 2
    straight = np.diff(2 * np.arcsin(np.sqrt(1 / (1 + np.exp(-np.linspace(low, high, points + 2))))))
    assert straight.max() / straight.min() > 1.3  # equally spaced logits are far from it

    def total(inner: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-np.array([low, *inner, high])))
        coins = np.stack([1 - p, p], axis=1)
        return float(sum(jensenshannon(a, b) ** 2 for a, b in itertools.pairwise(coins)))

    best = minimize(total, np.linspace(low, high, points + 2)[1:-1], method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(logits[1:-1], best.x, atol=1e-3)
    last = json.loads((tmp_path / HISTORY_FILE).read_text().splitlines()[-1])
    assert last["objective"] == pytest.approx(best.fun, rel=1e-3)


def test_the_divergence_is_scipys() -> None:
    rng = generator(0, "logits")
    first, second = (3 * torch.randn(20, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    p, q = first.softmax(1).numpy(), second.softmax(1).numpy()
    expected = [jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(jensen_shannon(first, second).numpy(), expected, rtol=1e-10)
    sure = torch.tensor([[200.0, 0.0], [0.0, 200.0]])
    assert float(jensen_shannon(sure[0], sure[1])) == pytest.approx(math.log(2))
    assert float(jensen_shannon(sure[0], sure[0])) == 0


def test_a_fit_continues_bit_for_bit_and_meets_its_ends(
    convnet: nn.Module, ends: Ends, dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    def run(name: str, stop: int | None = None) -> bytes:
        def on_epoch(record: Mapping[str, float]) -> None:
            if record["epoch"] == stop:
                raise Stop

        curve = Geodesic(training=settings(epochs=2, batch_size=32), points=2)
        curve.fit(convnet, *ends, dataset, seed=0, folder=tmp_path / name, on_epoch=on_epoch)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [BENDS_FILE, HISTORY_FILE]
        return (tmp_path / name / BENDS_FILE).read_bytes()

    whole = run("whole")
    with pytest.raises(Stop):
        run("broken", stop=1)
    assert whole == run("broken")
    records = [json.loads(line) for line in (tmp_path / "whole" / HISTORY_FILE).read_text().splitlines()]
    assert records[1]["objective"] < records[0]["objective"]
    curve = Geodesic(training=settings(), points=2)
    assert isinstance(curve, TrainedCurve)
    path = curve.path(*ends, tmp_path / "whole")
    for t in (0, 1):
        state = path.state(t)
        assert all(state[name].numpy().tobytes() == tensor.numpy().tobytes() for name, tensor in ends[t].items())
    third = load(tmp_path / "whole" / BENDS_FILE)["bend1.4.weight"]
    torch.testing.assert_close(path.state(1 / 3)["4.weight"], third)
    with pytest.raises(UserError, match=r"set curve\.points to match"):
        Geodesic(training=settings(), points=1).path(*ends, tmp_path / "whole")
