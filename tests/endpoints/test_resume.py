"""Every kind that trains: the same bits again, and after a kill at any epoch; settings make no two kinds the same."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from lmc.endpoints.base import Endpoints, Ingredients
from lmc.endpoints.forked import Forked
from lmc.endpoints.independent import Independent
from lmc.endpoints.permutation_trained import PermutationTrained
from lmc.endpoints.pruned import Pruned
from lmc.endpoints.split_data import SplitData
from lmc.endpoints.trajectory import Trajectory
from lmc.training.loop import HISTORY_FILE
from tests.endpoints.small import Stop, contents, make

KINDS = {
    "independent": Independent(),
    "trajectory": Trajectory(epochs=(0, 2)),
    "forked": Forked(shared_epochs=2),
    "forked at initialisation": Forked(shared_epochs=0),
    "pruned": Pruned(levels=2, fraction=0.4, rewind_epoch=1),
    "pruned at random by layer": Pruned(levels=2, fraction=0.4, method="random", scope="layer"),
    "pruned in one shot": Pruned(levels=2, fraction=0.4, method="one_shot"),
    "split_data": SplitData(),
    "permutation_trained": PermutationTrained(period=3),
    "permutation_trained by unit": PermutationTrained(period=7, within="unit", vectors="trained"),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_killed_training_ends_with_the_same_files(kind: Endpoints, ingredients: Ingredients, tmp_path: Path):
    expected, unbroken = make(kind, 5, ingredients, tmp_path / "whole")
    assert len(unbroken) == kind.steps(ingredients.training.epochs)
    for stop in {1, len(unbroken) // 2, len(unbroken) - 1}:  # a trunk's epochs come first, and are not trained again
        with pytest.raises(Stop):
            make(kind, 5, ingredients, tmp_path / "broken", stop)
    found, seen = make(kind, 5, ingredients, tmp_path / "broken")
    assert contents(found) == contents(expected)
    timed = ("seconds", "images_per_second")
    for record, other in zip(seen, unbroken, strict=True):
        assert {k: v for k, v in record.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}
    whole, broken = (tmp_path / name / "network5" for name in ("whole", "broken"))
    assert sorted(f.name for f in broken.iterdir()) == sorted(f.name for f in whole.iterdir())
    for file in whole.glob("*.safetensors"):
        assert (broken / file.name).read_bytes() == file.read_bytes(), file.name
    lines = [json.loads(line) for line in (broken / HISTORY_FILE).read_text().splitlines()]
    assert lines == seen
    assert [line["epoch"] for line in lines] == list(range(1, len(seen) + 1))


def test_a_killed_trunk_is_made_as_an_unbroken_one(ingredients: Ingredients, tmp_path: Path):
    kind = Forked(shared_epochs=3)
    trunk, within = kind.trunk(5), tmp_path / "broken" / "trunk5"

    def stop(record: Mapping[str, float]) -> None:
        if record["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        trunk.make(ingredients, within, stop)
    trunk.make(ingredients, within, lambda record: None)
    found, _ = make(kind, 5, ingredients, tmp_path / "broken")
    expected, _ = make(kind, 5, ingredients, tmp_path / "whole")
    assert contents(found) == contents(expected)


def test_every_setting_is_in_the_key():
    kinds: list[Endpoints] = [
        *KINDS.values(),
        *(Pruned(**changed) for changed in ({"levels": 3}, {"fraction": 0.5}, {"kept": ("a",)}, {"scope": "layer"})),
        *(Pruned(**changed) for changed in ({"rewind_epoch": 1}, {"method": "random"}, {"method": "one_shot"})),
        *(SplitData(**changed) for changed in ({"split": "images"}, {"split": "classes"}, {"share": 0.7})),
        *(SplitData(**changed) for changed in ({"classes": "random"}, {"split_seed": 1})),
        *(PermutationTrained(**changed) for changed in ({"period": 1}, {"within": "unit"}, {"vectors": "kept"})),
        Forked(shared_epochs=2, shared_seed=1),
    ]
    found = []
    for kind in kinds:
        trunk = kind.trunk(5)
        found.append(json.dumps([kind.identity(5, (5, 7)), None if trunk is None else trunk.identity()]))
    assert len(set(found)) == len(kinds)
