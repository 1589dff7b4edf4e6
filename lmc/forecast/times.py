"""How long steps take on this machine, by doing a few of them."""

import json
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lmc import seeding
from lmc.dataset.images import Dataset
from lmc.plan import Plan
from lmc.state import of_model, to_device
from lmc.training.loop import fit
from lmc.training.network import NetworkTrainable
from lmc.training.recipe import Training

_STEPS = 3
_IMAGES = 200


@dataclass
class Stopwatch:
    """Times of steps, each kind of network, training and data measured once."""

    _training: dict[str, float] = field(default_factory=dict)
    _forward: dict[str, float] = field(default_factory=dict)

    def epoch(self, plan: Plan, training: Training) -> float:
        """Return the seconds of one epoch of `training`, judged by a few of its steps."""
        images = len(plan.dataset.for_networks.train)
        steps = max(1, -(-images // training.batch_size))
        kind = json.dumps([plan.identity("architecture"), repr(training), plan.dataset.input_shape], sort_keys=True)
        if kind not in self._training:
            self._training[kind] = _seconds_of_a_step(plan, training)
        return self._training[kind] * steps

    def image(self, plan: Plan) -> float:
        """Return the seconds that the loss of one image takes without gradients."""
        kind = json.dumps([plan.identity("architecture"), plan.dataset.input_shape], sort_keys=True)
        if kind not in self._forward:
            splits = replace(plan.evaluation, train_examples=None, test_examples=None).splits(
                _few(plan.dataset, _IMAGES)
            )
            state = to_device(of_model(plan.model), plan.device)
            splits.measure(plan.model, state)  # memory and kernels of a first pass are not those of the rest
            started = time.perf_counter()
            measured = splits.measure(plan.model, state)
            self._forward[kind] = (time.perf_counter() - started) / sum(one.examples for one in measured.values())
        return self._forward[kind]


def _seconds_of_a_step(plan: Plan, training: Training) -> float:
    few = _few(plan.dataset.for_networks, _STEPS * training.batch_size)
    records: list[dict[str, float]] = []
    with seeding.isolated(0, "forecast"), tempfile.TemporaryDirectory() as folder:
        model = plan.network()
        trainable = NetworkTrainable(model, of_model(model), plan.device)
        short = replace(training, epochs=2, warmup_epochs=0.0)
        fit(model, trainable, few, short, seed=0, folder=Path(folder), on_epoch=lambda one: records.append(dict(one)))
    return records[-1]["seconds"] / max(1, -(-len(few.train) // training.batch_size))


def _few(dataset: Dataset, images: int) -> Dataset:
    def first(split: str) -> torch.Tensor:
        return torch.arange(min(images, len(getattr(dataset, split))))

    return replace(
        dataset,
        train=dataset.train.select(first("train")),
        test=dataset.test.select(first("test")),
        validation=dataset.validation.select(first("validation")),
    )
