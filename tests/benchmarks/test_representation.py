"""Comparing representations: the memory it takes, for two numbers of images; it must not grow with them."""

import gc
import time
from pathlib import Path

import pytest
from torch import nn

from lmc.analysis.base import Subject
from lmc.analysis.convergent_learning import ConvergentLearning
from lmc.analysis.representation_similarity import RepresentationSimilarity
from lmc.architecture.vgg import VGG
from lmc.evaluation.representation_similarity import layers_of
from lmc.seeding import isolated
from lmc.state import of_model
from tests.analysis.subjects import data, subject
from tests.benchmarks.test_alignment import PAGE, peak_memory

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


def resident() -> float:
    """MiB that the process holds now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


def activations(of: Subject) -> float:
    """MiB of what is observed of one image, in both networks."""
    layers = layers_of(of.model, of.symmetry, of.networks[0], of.dataset)
    return 2 * 4 * sum(layer.units * layer.positions for layer in layers) / 2**20


@pytest.mark.parametrize("name", ANALYSES)
def test_memory_does_not_grow_with_the_images(benchmark, name, tmp_path: Path):
    of = pair()
    found = {}
    for images in (FEW, FEW, MANY):  # the first time, libraries are loaded and the networks are traced
        analysis = type(ANALYSES[name])(**{**vars(ANALYSES[name]), "images": images})
        gc.collect()
        before, start = resident(), time.process_time()
        with peak_memory() as grown:
            analysis(of, tmp_path, lambda numbers: None)
        found[images] = (before + grown[0], time.process_time() - start)
    (few, _), (many, seconds) = found[FEW], found[MANY]
    kept = (MANY - FEW) * activations(of)
    benchmark.name = f"{name}: peak {few:.0f} MiB for {FEW} images, {many:.0f} MiB for {MANY}; {seconds:.1f} s"
    benchmark.extra_info.update(peak_mib={FEW: few, MANY: many}, seconds=seconds, activations_mib=kept)
    benchmark.pedantic(lambda: None, rounds=1)
    # The same images twice differ by some batches too, as the allocator keeps what is freed.
    assert many - few < kept / 5
