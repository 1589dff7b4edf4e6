"""Networks trained or loaded, and measured as they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmc import state as states
from lmc.endpoints.base import EARLIER_FILE, WEIGHTS_FILE, Ingredients, Trunk
from lmc.evaluation.measure import Measurement
from lmc.plan import Plan, stage_key
from lmc.results import Row
from lmc.stages.base import Network, Observer
from lmc.stages.measured import measured_rows
from lmc.store import Artifact


def endpoint(plan: Plan, label: int, observer: Observer) -> Network:
    """Train or load one network."""
    ingredients = Ingredients(plan.network, plan.dataset.for_networks, plan.training, plan.labels)
    trunk = plan.endpoints.trunk(label)
    before = None if trunk is None else _trunk(plan, trunk, label, ingredients, observer)

    def make(folder: Path) -> None:
        with observer.stage(f"network {label}", plan.endpoints.steps(plan.training.epochs)) as advance:
            plan.endpoints.make(label, ingredients, folder, advance, None if before is None else before.folder)

    artifact = plan.stage("endpoints", *_network_of(plan, label, None if before is None else before.key), make)
    files = [artifact.folder / WEIGHTS_FILE]
    files += [artifact.folder / EARLIER_FILE.format(n) for n in range(len(plan.setting.moments.values) - 1)]
    weights, *earlier = (states.to_device(states.load(file), plan.device) for file in files)
    return Network(label, artifact.key, weights, tuple(earlier))


def _trunk(plan: Plan, trunk: Trunk, label: int, ingredients: Ingredients, observer: Observer) -> Artifact:
    """Train or load what comes before the training of network `label`, and perhaps of others."""

    def make(folder: Path) -> None:
        with observer.stage(f"trunk of network {label}", trunk.steps(plan.training.epochs)) as advance:
            trunk.make(ingredients, folder, advance)

    return plan.stage("endpoints", *_made_of(plan, trunk.identity(), trains=True), make)


def endpoint_keys(plan: Plan, label: int) -> dict[str, int]:
    """Return the keys of what is trained for a network, itself and what may come before it, each to its epochs.

    A network tells of the epochs of its trunk again, so that its own are at most so many.
    """
    epochs = plan.training.epochs
    trunk, found, before = plan.endpoints.trunk(label), {}, None
    if trunk is not None:
        before = stage_key("endpoints", *_made_of(plan, trunk.identity(), trains=True))
        found[before] = trunk.steps(epochs)
    own = stage_key("endpoints", *_network_of(plan, label, before))
    return {**found, own: plan.endpoints.steps(epochs) if plan.endpoints.trains else 0}


def _network_of(plan: Plan, label: int, trunk: str | None) -> tuple[dict[str, Any], list[str]]:
    """What a network is made of, and the keys of its parents, `trunk` among them if something comes before it."""
    made_of, parents = _made_of(plan, plan.endpoints.identity(label, plan.labels), trains=plan.endpoints.trains)
    return made_of, parents if trunk is None else [*parents, trunk]


def _made_of(plan: Plan, member: Mapping[str, Any], *, trains: bool) -> tuple[dict[str, Any], list[str]]:
    """What a network is made of, and the keys of its parents."""
    made_of = {"architecture": plan.identity("architecture"), "member": member}
    if not trains:
        return made_of, []
    return {**made_of, "training": plan.identity("training")}, [plan.networks_key]


def endpoint_rows(plan: Plan, network: Network) -> list[Row]:
    """Measure an endpoint as it was trained, whatever is done to merged networks."""

    def measure() -> dict[str, Measurement]:
        return plan.evaluation.splits(plan.dataset).measure(plan.model, network.state)

    return measured_rows(plan, "endpoint", None, (network.label,), {}, [network.key], measure)
