"""Networks trained or loaded, and measured as they are."""

from pathlib import Path
from typing import Any

from lmc import state as states
from lmc.endpoints.base import EARLIER_FILE, WEIGHTS_FILE, Ingredients
from lmc.evaluation.measure import Measurement
from lmc.plan import Plan
from lmc.results import Row
from lmc.stages.base import Network, Observer
from lmc.stages.measured import measured_rows


def endpoint(plan: Plan, label: int, observer: Observer) -> Network:
    """Train or load one network."""
    made_of: dict[str, Any] = {"architecture": plan.identity("architecture"), "member": plan.endpoints.identity(label)}
    parents, epochs = [], 1
    if plan.endpoints.trains:
        made_of["training"], parents, epochs = plan.identity("training"), [plan.networks_key], plan.training.epochs
    ingredients = Ingredients(plan.network, plan.dataset.for_networks, plan.training)

    def make(folder: Path) -> None:
        with observer.stage(f"network {label}", epochs) as advance:
            plan.endpoints.make(label, ingredients, folder, advance)

    artifact = plan.stage("endpoints", made_of, parents, make)
    files = [artifact.folder / WEIGHTS_FILE]
    files += [artifact.folder / EARLIER_FILE.format(n) for n in range(len(plan.setting.moments.values) - 1)]
    weights, *earlier = (states.to_device(states.load(file), plan.device) for file in files)
    return Network(label, artifact.key, weights, tuple(earlier))


def endpoint_rows(plan: Plan, network: Network) -> list[Row]:
    """Measure an endpoint as it was trained, whatever is done to merged networks."""

    def measure() -> dict[str, Measurement]:
        return plan.evaluation.splits(plan.dataset).measure(plan.model, network.state)

    return measured_rows(plan, "endpoint", None, (network.label,), {}, [network.key], measure)
