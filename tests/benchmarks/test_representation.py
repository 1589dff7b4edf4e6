"""Comparing representations: the memory it takes, for two numbers of images; it must not grow with them."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from torch import nn

from lmc.analysis.base import Subject
from lmc.analysis.convergent_learning import ConvergentLearning
from lmc.analysis.representation_similarity import RepresentationSimilarity
from lmc.architecture.vgg import VGG
from lmc.evaluation.representation_layers import layers_of
from lmc.seeding import isolated
from lmc.state import of_model
from tests.analysis.subjects import data, subject
from tests.benchmarks.alone import peak_of

pytestmark = pytest.mark.usefixtures("one_thread")

FEW, MANY, BATCH = 800, 3200, 100
ANALYSES = {
    "convergent_learning": ConvergentLearning(penalties=(0.2,), clusters=(0.2,), batch_size=BATCH),
    "representation_similarity": RepresentationSimilarity(batch_size=BATCH),
}


def pair() -> Subject:
    networks = []
    for seed in (0, 1):
        with isolated(seed, "init"):
            model: nn.Module = VGG(input_shape=(3, 32, 32), classes=10, depth=11, width=0.25)
        networks.append(of_model(model))
    return subject(model, networks, dataset=data((3, 32, 32), 10, train=MANY))


def activations(of: Subject) -> float:
    """MiB of what is observed of one image, in both networks."""
    layers = layers_of(of.model, of.symmetry, of.networks[0], of.dataset)
    return 2 * 4 * sum(layer.units * layer.positions for layer in layers) / 2**20


def analyse(name: str, images: int) -> None:
    """Run an analysis on the first of 3,200 images."""
    analysis = type(ANALYSES[name])(**{**vars(ANALYSES[name]), "images": images})
    with TemporaryDirectory() as folder:
        analysis(pair(), Path(folder), lambda numbers: None)


@pytest.mark.parametrize("name", ANALYSES)
def test_memory_does_not_grow_with_the_images(benchmark, name):
    few, many = (peak_of(f"from {__name__} import analyse; analyse({name!r}, {images})") for images in (FEW, MANY))
    kept = (MANY - FEW) * activations(pair())
    benchmark.name = f"{name}: peak {few:.0f} MiB for {FEW} images, {many:.0f} MiB for {MANY}"
    benchmark.extra_info.update(peak_mib={FEW: few, MANY: many}, activations_mib=kept)
    benchmark.pedantic(lambda: None, rounds=1)
    assert many - few < kept / 20
