"""From settings to everything that the stages need, checked before anything is trained."""

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmc import config, seeding
from lmc.analysis.base import Analysis, Setting
from lmc.curve.trained import TrainedCurve
from lmc.dataset.images import Dataset
from lmc.endpoints.base import Endpoints, Moments
from lmc.errors import UserError
from lmc.evaluation.path import PathEvaluation
from lmc.merge.base import JointMerge
from lmc.merge.pairs import Pairs
from lmc.statistics.base import Statistics
from lmc.store import Artifact, Store, fingerprint
from lmc.symmetry.discover import discover
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.verify import verify
from lmc.training.recipe import Training

log = logging.getLogger(__name__)

# A stage's version is raised when its code computes something else from the same settings: old artifacts stay unfound.
VERSIONS = {"dataset": 1, "endpoints": 1, "alignment": 1, "curve": 1, "evaluation": 2, "analysis": 2}

# Constructor arguments that come from the dataset and not from the configuration.
_GIVEN = {"architecture": ("input_shape", "classes")}


@dataclass(frozen=True)
class Plan:
    """What the stages work with.

    Attributes:
        settings: the resolved configuration; keys are made of its nodes.
        labels: the numbers of the networks, the reference first.
        seed: of what comes after the training of the networks.
        device: where everything is computed.
        store: where artifacts are kept.
        dataset: on `device`.
        dataset_key: what the stages that read data have among their parents.
        networks_key: the same for the training of networks: of the poisoned images, where the data are tampered with.
        model: the architecture on `device`; its own weights do not matter.
        symmetry: of the architecture, proved.
        training, endpoints, merge, statistics, evaluation: the chosen options.
        analyses: the chosen options of a group that may have many, by name.
        setting: what the analyses know before anything is trained.
        used: the artifacts that were made or found, by key.
    """

    settings: Mapping[str, Any]
    labels: tuple[int, ...]
    seed: int
    device: torch.device
    store: Store
    dataset: Dataset
    dataset_key: str
    networks_key: str
    model: nn.Module
    symmetry: Symmetry
    training: Training
    endpoints: Endpoints
    merge: JointMerge | Pairs
    statistics: Statistics
    evaluation: PathEvaluation
    analyses: Mapping[str, Analysis]
    setting: Setting
    used: dict[str, Artifact] = field(default_factory=dict)

    def identity(self, group: str) -> dict[str, Any]:
        """Return what the chosen option of `group` contributes to a key."""
        return config.identity(self.settings[group], group, _GIVEN.get(group, ()))

    def network(self) -> nn.Module:
        """Return a freshly initialised network on the CPU."""
        return _network(self.settings, self.dataset)

    def stage(
        self, stage: str, made_of: Mapping[str, Any], parents: Sequence[str], make: Callable[[Path], None]
    ) -> Artifact:
        """Return the artifact of a stage, from the store or freshly made."""
        key = stage_key(stage, made_of, parents)
        artifact = self.store.get_or_make(stage, key, make, settings=made_of, parents=parents, device=str(self.device))
        self.used[key] = artifact
        return artifact

    @property
    def costs(self) -> dict[str, dict[str, Any]]:
        """Seconds that it took to make each artifact that was used, whenever that was, and its stage, by key."""
        return {key: {"stage": one.stage, "seconds": one.record["seconds"]} for key, one in self.used.items()}


def stage_key(stage: str, made_of: Mapping[str, Any], parents: Sequence[str]) -> str:
    """Return the key of an artifact of `stage` at its present version."""
    return fingerprint(stage, VERSIONS[stage], made_of, parents)


def prepare(settings: Mapping[str, Any]) -> Plan:
    """Build and check all that an experiment needs; what is wrong with it does not get past here.

    Raises:
        UserError: a setting cannot be used, a file is missing or damaged, the device does not exist, the store cannot
            be written, or the network's symmetry cannot be proved.
    """
    device = _device(settings["device"])
    torch.set_float32_matmul_precision("highest")  # barriers and matching statistics are float32, never TF32
    groups = ("training", "endpoints", "alignment", "merge", "curve", "statistics", "evaluation")
    built = {group: config.build(settings[group], group) for group in groups}
    analyses = {name: config.build(node, f"analysis.{name}") for name, node in settings["analysis"].items()}
    labels = built["endpoints"].labels(settings["seeds"])
    store = Store(Path(settings["store"]["root"]))
    store.check_writable()
    dataset = _dataset(json.dumps(settings["dataset"]))
    with seeding.isolated(0, "plan"):
        model = _network(settings, dataset)
    built["endpoints"].check(model, dataset.for_networks, built["training"], labels)
    symmetry = _checked_symmetry(built, model, dataset)
    identity = {**config.identity(settings["dataset"], "dataset"), "checksum": dataset.checksum}
    dataset = dataset.to(device)
    setting = Setting(
        model=model.to(device),
        symmetry=symmetry,
        dataset=dataset,
        splits=built["evaluation"].splits(dataset),
        curve=built["curve"],
        alignment=built["alignment"],
        moments=_moments(built),
        labels=labels,
    )
    for analysis in analyses.values():
        analysis.check(setting)
    return Plan(
        settings=settings,
        labels=labels,
        seed=settings["seed"],
        device=device,
        store=store,
        dataset=dataset,
        dataset_key=stage_key("dataset", identity, ()),
        networks_key=stage_key("dataset", _of_networks(identity, dataset), ()),
        model=model,
        symmetry=symmetry,
        **{group: built[group] for group in ("training", "endpoints", "merge", "statistics", "evaluation")},
        analyses=analyses,
        setting=setting,
    )


def _checked_symmetry(built: Mapping[str, Any], model: nn.Module, dataset: Dataset) -> Symmetry:
    """Return the symmetry of `model`, proved, if the chosen options can do with it, with the network and the data."""
    if built["alignment"].stacked > (earlier := len(_moments(built).values) - 1):
        raise UserError(
            f"alignment.stacked={built['alignment'].stacked}: there are {earlier} earlier checkpoints of each network; "
            "keep more with endpoints=trajectory endpoints.epochs=[...], give those of your own files as "
            "endpoints.earlier=[...], or stack fewer"
        )
    if isinstance(built["curve"], TrainedCurve):
        built["curve"].check(model)
    example = torch.zeros(2, *dataset.input_shape)
    symmetry = discover(model.eval(), example)
    built["evaluation"].splits(dataset)  # more images asked for than there are?
    built["alignment"].check(symmetry)
    if not isinstance(built["merge"], Pairs):
        built["merge"].check(symmetry, built["alignment"])
    built["statistics"].bind(model, symmetry, (), dataset)
    proof = verify(model, symmetry, example)
    units = sum(symmetry.units(name) for name in symmetry.groups)
    log.info(
        "symmetry: %d hidden units in %d group%s can be permuted; doing so changes the outputs by %.0e",
        units,
        len(symmetry.groups),
        "" if len(symmetry.groups) == 1 else "s",
        proof.error,
    )
    return symmetry


def _moments(built: Mapping[str, Any]) -> Moments:
    moments: Moments = built["endpoints"].moments(built["training"].epochs)
    return moments


def _of_networks(identity: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """What the images that networks are trained on are known by: how many others are kept clean does not matter."""
    found = {**identity, "checksum": dataset.for_networks.checksum}
    if "trigger" in found:
        found["trigger"] = {name: value for name, value in found["trigger"].items() if name != "clean"}
    return found


@functools.lru_cache(maxsize=1)
def _dataset(node: str) -> Dataset:
    """Load the dataset that `node` (JSON) describes; the jobs of a sweep that share a process decode it once."""
    loaded: Dataset = config.build(json.loads(node), "dataset").load()
    return loaded


def _network(settings: Mapping[str, Any], dataset: Dataset) -> nn.Module:
    network: nn.Module = config.build(
        settings["architecture"], "architecture", input_shape=dataset.input_shape, classes=dataset.classes
    )
    return network


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"device={name} does not exist here; use auto or one of {', '.join(available)}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name} cannot compute in float64, which alignment needs; use cpu or cuda")
    return device
