"""A product with the Hessian costs a few gradient steps, and its memory does not grow with the number of images."""

import resource
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lmc.evaluation.curvature import Hessian, top_eigenvalue
from lmc.seeding import isolated
from lmc.state import of_model
from tests.analysis.subjects import data
from tests.benchmarks.alone import peak_of
from tests.benchmarks.test_evaluation import CASES

pytestmark = pytest.mark.usefixtures("one_thread")

ROUNDS, BATCH, IMAGES = 5, 125, {"resnet20": 250, "mlp": 2000}


def eigenvalue(images: int) -> None:
    """Two iterations for the top eigenvalue on the first of 2,000 images."""
    architecture, shape, _, _ = CASES["resnet20"]
    with isolated(0, "init"):
        model = architecture()
    dataset = data(shape, 10, 2000, 10)
    hessian = Hessian(model, of_model(model), dataset, dataset.train.first(images), batch_size=50)
    top_eigenvalue(hessian.product, torch.ones(hessian.size), iterations=2)


def clock(work: Callable[[], object]) -> float:
    """Processor seconds: unlike wall time, other processes on the machine change them little."""
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.mark.parametrize("name", CASES)
def test_a_product_over_plain_gradients(benchmark, name):
    architecture, shape, _, _ = CASES[name]
    dataset = data(shape, 10, IMAGES[name], 10)
    with isolated(0, "init"):
        model = architecture()
    hessian = Hessian(model, of_model(model), dataset, dataset.train, batch_size=BATCH)
    vector = torch.ones(hessian.size)

    def gradients() -> list[Tensor]:
        """Forward and backward, as anyone would write it."""
        model.eval()
        parameters = list(model.parameters())
        for inputs, labels in dataset.batches(dataset.train, BATCH):
            found = torch.autograd.grad(cross_entropy(model(inputs), labels), parameters)
        return list(found)

    def product() -> None:
        hessian.product(vector)

    gradients()
    product()
    times = [(clock(gradients), clock(product)) for _ in range(ROUNDS)]
    ratio = min(mine for _, mine in times) / min(plain for plain, _ in times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    benchmark.name = f"{name}: product with the Hessian, {ratio:.2f} gradient steps, peak {peak} MiB"
    benchmark.extra_info.update(ratio=ratio, times=times, peak_mib=peak)
    benchmark.pedantic(product, rounds=1)
    assert ratio <= 4


def test_memory_does_not_grow_with_the_images(benchmark):
    """Two numbers of images of the same data set; eight times as many take the same memory, to 5 %."""

    few, many = (peak_of(f"from {__name__} import eigenvalue; eigenvalue({images})") for images in (100, 800))
    benchmark.name = f"resnet20: eigenvalue on 100 images {few:.0f} MiB, on 800 images {many:.0f} MiB"
    benchmark.extra_info.update(few_mib=few, many_mib=many)
    benchmark.pedantic(lambda: None, rounds=1)
    assert many <= 1.05 * few
