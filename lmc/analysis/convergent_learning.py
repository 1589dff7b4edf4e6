"""Do two networks that were trained apart learn the same units, the same spans of units, or the same clusters?"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from lmc import state
from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.analysis.unit_tables import (
    ENDS,
    Clustered,
    Part,
    Predicted,
    Unit,
    read_part,
    summarise,
    units_of,
    write_rows,
)
from lmc.evaluation.clustering import mixing, spectral_clusters
from lmc.evaluation.convergent_learning import (
    Partners,
    UnitCorrelations,
    check_shares,
    observed_groups,
    partners,
    unit_correlations,
)
from lmc.evaluation.sparse_prediction import least_squares_errors, sparse_predictions
from lmc.seeding import generator

MATRICES_FILE = "units.safetensors"
UNITS_FILE = "units.csv"
PREDICTION_FILE = "prediction.csv"
CLUSTERS_FILE = "clusters.csv"
_PART = "part_{}"


@dataclass(frozen=True, kw_only=True)
class ConvergentLearning:
    """Compare the units of two networks as they were trained, layer by layer (Li et al. 2015, sections 3 to 5).

    Units are seen behind their nonlinearities, on training images without augmentation; layers are groups of units. The
    correlations within and between the networks give: the best one-to-one matching against the best partner of each
    unit (section 3.2), sparse linear prediction of the fixed network's units from the moving one's (section 4), and
    spectral clusters of the units of both, by absolute correlation (section 5). Nothing is corrected or aligned before.
    Predictions are measured on the images that they are fitted to: with fewer samples than units, least squares is
    always perfect.

    Args:
        images: at most so many training images, the first ones, without augmentation; None: all.
        penalties: of the sum of absolute weights, in shares of a standard deviation (the `alpha` of scikit-learn's
            `Lasso` on standardised data).
        tolerance: duality gap at which a prediction counts as solved, in shares of a unit's variance.
        clusters: numbers of clusters, in shares of the units of one network; at least 2 clusters are made.
        batch_size: images in a batch; changes nothing but rounding.
        memory: GiB of moments that are held at a time; groups without room are observed in further passes.

    Raises:
        UserError: no penalty or number of clusters, one that is given twice, or one outside (0, 1].
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size", "memory"})
    files: ClassVar[tuple[str, ...]] = (MATRICES_FILE, UNITS_FILE, PREDICTION_FILE, CLUSTERS_FILE)
    together: ClassVar[bool] = False

    images: PositiveInt | None = 10_000
    penalties: tuple[float, ...] = (0.4, 0.2, 0.1, 0.05, 0.025, 0.0125)
    tolerance: Annotated[float, Field(gt=0)] = 1e-5
    clusters: tuple[float, ...] = (0.1, 0.2, 0.4)
    batch_size: PositiveInt = 500
    memory: Annotated[float, Field(gt=0)] = 4.0

    def __post_init__(self) -> None:
        check_shares(self.penalties, "analysis.convergent_learning.penalties")
        check_shares(self.clusters, "analysis.convergent_learning.clusters")

    def steps(self, setting: Setting) -> int:
        """Return one step a group for its matching, and one for each penalty and each number of clusters."""
        return len(observed_groups(setting.model, setting.symmetry)) * self._steps

    @property
    def _steps(self) -> int:
        return 1 + len(self.penalties) + len(self.clusters)

    def check(self, setting: Setting) -> None:
        """Raise a `UserError` if no unit can be observed."""
        observed_groups(setting.model, setting.symmetry)

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Compare group by group and write the four files; groups that an earlier attempt has finished are kept.

        units.safetensors holds, by "<kind>/<group>", the correlation matrices "fixed", "moving" (within the networks)
        and "between" (rows: fixed network), float32; and "clusters_<share>", the cluster of each unit of the fixed
        network and then of the moving one (-1: dead).

        Returns:
            Of each layer and of all units: the mean correlation of "one_to_one" and "semi_matching", what share of the
            units are chosen never and more than once, "prediction" errors and numbers of units used, "clusters" and how
            mixed they are, and the share of "dead" units.
        """
        groups = observed_groups(subject.model, subject.symmetry)
        parts = {name: folder / _PART.format(number) for number, name in enumerate(groups)}
        left = [name for name in groups if not parts[name].with_suffix(".json").is_file()]
        for number, name in enumerate(groups):
            for _ in range(0 if name in left else self._steps):
                on_step({"group": number})
        observed = unit_correlations(
            subject.model,
            subject.symmetry,
            (subject.trained[0][-1], subject.trained[1][-1]),
            subject.dataset,
            groups=left,
            examples=self.images,
            batch_size=self.batch_size,
            memory=self.memory,
        )
        for found in observed if left else ():
            self._compare(
                found, subject.seed, parts[found.group], partial(_numbered, on_step, groups.index(found.group))
            )
        whole = [read_part(file.with_suffix(".json")) for file in parts.values()]
        state.save(
            {name: tensor for file in parts.values() for name, tensor in state.load(_tensors(file)).items()},
            folder / MATRICES_FILE,
        )
        write_rows(folder / UNITS_FILE, Unit, [row for part in whole for row in part.units])
        write_rows(folder / PREDICTION_FILE, Predicted, [row for part in whole for row in part.predicted])
        write_rows(folder / CLUSTERS_FILE, Clustered, [row for part in whole for row in part.clustered])
        for file in parts.values():
            _tensors(file).unlink()
            file.with_suffix(".json").unlink()
        count = len(subject.dataset.train)
        examples = count if self.images is None else min(count, self.images)
        return [*summarise(whole, examples), *(f for part in whole for f in summarise([part], examples, by_layer=True))]

    def _compare(self, found: UnitCorrelations, seed: int, file: FilePath, on_step: OnStep) -> None:
        """Do everything for one group and write it to `file`.json and .safetensors."""
        pairs = partners(found)
        on_step({"one_to_one": pairs.matched.mean().item(), "semi_matching": pairs.highest.mean().item()})
        predicted = list(self._predicted(found, pairs, on_step))
        labels, clustered = self._clustered(found, seed, on_step)
        matrices = {kind: getattr(found, kind).to("cpu", torch.float32) for kind in (*ENDS, "between")}
        tensors = {f"{kind}/{found.group}": tensor for kind, tensor in {**matrices, **labels}.items()}
        state.save(tensors, _tensors(file))
        part = Part(units=list(units_of(found, pairs)), predicted=predicted, clustered=clustered)
        unfinished = file.with_suffix(".new")
        unfinished.write_text(json.dumps(asdict(part)), encoding="utf-8")
        unfinished.replace(file.with_suffix(".json"))

    def _predicted(self, found: UnitCorrelations, pairs: Partners, on_step: OnStep) -> Iterator[Predicted]:
        targets, predictors = found.live
        within = found.moving[predictors][:, predictors]
        between = found.between[targets][:, predictors].T
        of = partial(Predicted, layer=found.group, targets=between.shape[1])
        for solved in sparse_predictions(within, between, self.penalties, tolerance=self.tolerance):
            error, used = _mean(solved.errors), _mean(solved.used)
            on_step({"penalty": solved.penalty, "error": error, "used": used})
            gap = solved.gaps.max().item() if len(solved.gaps) else 0.0
            yield of(method="lasso", penalty=solved.penalty, error=error, used=used, gap=gap)
        some = float(len(within) > 0)
        alone = 1 - pairs.matched[targets.cpu()].square()
        best = 1 - between.square().amax(0) if len(within) else torch.ones(between.shape[1])
        yield of(method="one_to_one", error=_mean(alone), used=some)
        yield of(method="best_unit", error=_mean(best), used=some)
        yield of(method="least_squares", error=_mean(least_squares_errors(within, between)), used=float(len(within)))

    def _clustered(
        self, found: UnitCorrelations, seed: int, on_step: OnStep
    ) -> tuple[dict[str, Tensor], list[Clustered]]:
        joint, second = found.of_live()
        counts = [min(len(joint), max(2, round(share * found.units))) for share in self.clusters]
        draws = generator(seed, "convergent_learning", found.group)
        clusters = spectral_clusters(joint.abs(), counts, draws) if len(joint) else []
        labels, rows = {}, []
        for share, own in zip(self.clusters, clusters, strict=bool(clusters)):
            found_mixing = mixing(own, second.cpu())
            rows.append(Clustered(layer=found.group, share=share, units=len(own), **vars(found_mixing)))
            labels[f"clusters_{share:g}"] = torch.full((2 * found.units,), -1).masked_scatter(
                found.live.flatten().cpu(), own
            )
            on_step({"clusters": found_mixing.clusters, "mixed": found_mixing.mixed})
        for _ in self.clusters[len(rows) :]:
            on_step({"clusters": 0})
        return labels, rows


def _numbered(on_step: OnStep, group: int, numbers: Mapping[str, float]) -> None:
    on_step({"group": group, **numbers})


def _mean(values: Tensor) -> float:
    """Of no values: 0, which weighs nothing in the mean over layers."""
    return values.double().mean().item() if len(values) else 0.0


def _tensors(file: FilePath) -> FilePath:
    return file.with_suffix(".safetensors")
