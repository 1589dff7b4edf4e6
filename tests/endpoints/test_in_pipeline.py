"""Every kind of endpoints, found by glob, in a whole experiment; and what is refused before any training."""

import json
from pathlib import Path

import numpy as np
import pytest

from lmc import config, state
from lmc.architecture.mlp import MLP
from lmc.errors import UserError
from lmc.pipeline import Results
from lmc.stages.base import Network
from lmc.stages.endpoints import endpoint
from lmc.store import fingerprint
from tests import whole

FOLDER = Path(config.conf_dir()) / "endpoints"
OPTIONS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
QUICK = ("architecture.depth=2", "training.epochs=2", "device=cpu")
NEEDED = {"trajectory": ["endpoints.epochs=[0,1]"]}
CHECKPOINTS = {"trajectory": 3, "pruned": 6}
"""How many checkpoints there are of a network, if not one."""


def run(*overrides: str) -> tuple[Results, whole.Silent]:
    return whole.run(*QUICK, *overrides)


def networks(*overrides: str) -> tuple[list[Network], list[str]]:
    """The endpoints alone, and what had to be computed for them."""
    made, observer = whole.prepared(*QUICK, *overrides), whole.Silent()
    return [endpoint(made, label, observer) for label in made.labels], list(observer.steps)


def chosen(name: str, folder: Path, norm: str) -> list[str]:
    if name != "checkpoint":
        return NEEDED.get(name, [])
    for number in range(2):
        model = MLP(input_shape=(1, 6, 6), classes=10, width=6, depth=2, norm=norm)
        state.save(state.of_model(model), folder / f"{number}.safetensors")
    return [f"endpoints.files=[{folder}/0.safetensors,{folder}/1.safetensors]"]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_every_kind_goes_all_the_way_and_is_kept(name: str, norm: str, tmp_path: Path):
    overrides = [f"endpoints={name}", f"architecture.norm={norm}", *chosen(name, tmp_path, norm)]
    found, observer = run(*overrides)
    assert all(np.isfinite(row.value) for row in found.rows)
    assert {row.pair for row in found.rows if row.what == "barrier"} == {(0, 1)}
    for label, (total, taken) in observer.steps.items():
        if "network" in label:
            assert total == len(taken), label
    made, computed = networks(*overrides)
    assert computed == []
    assert [len(network.checkpoints) for network in made] == [CHECKPOINTS.get(name, 1)] * 2
    again, second = run(*overrides)
    assert again == found
    assert second.steps == {}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ["1f6ecb06c5a7", "2e718635ebb3"]),
        (["endpoints=trajectory", "endpoints.epochs=[1]"], ["d2b59755915d", "e5462e0c9987"]),
    ],
    ids=["independent", "trajectory"],
)
def test_what_the_keys_of_networks_are_made_of_is_pinned(overrides: list[str], expected: list[str], tmp_path: Path):
    """Anything else would have networks that were trained trained again; if that is meant, say why in the commit."""
    networks(*overrides)
    records = [json.loads(file.read_text()) for file in (tmp_path / "store" / "endpoints").glob("*/record.json")]
    assert sorted(fingerprint("endpoints", 1, record["settings"])[:12] for record in records) == expected
    assert all(len(record["parents"]) == 1 for record in records)


def test_a_trajectory_ends_with_the_independent_network_and_begins_with_its_initialisation():
    """Reference: trainings that end after the epochs that are kept; the rate of learning is constant."""
    kept, _ = networks("endpoints=trajectory", "endpoints.epochs=[0,1]")
    for epochs in range(3):
        ended, _ = networks(f"training.epochs={epochs}")
        for network, expected in zip(kept, ended, strict=True):
            tensors = network.checkpoints[epochs]
            assert all(tensor.equal(tensors[name]) for name, tensor in expected.state.items())


def test_checkpoints_of_a_trajectory_can_be_stacked():
    found, _ = run("endpoints=trajectory", "endpoints.epochs=[0,1]", "alignment.stacked=2")
    assert {row.pair for row in found.rows if row.what == "barrier"} == {(0, 1)}


def test_networks_share_the_trunk_of_a_fork():
    _, computed = networks("endpoints=forked", "endpoints.shared_epochs=1", "seeds=[3,4]")
    assert computed == ["trunk of network 3", "network 3", "network 4"]
    _, computed = networks("endpoints=forked", "endpoints.shared_epochs=1", "seeds=[3,5]")
    assert computed == ["network 5"]


def test_ways_to_prune_share_the_dense_networks_of_a_trajectory():
    _, computed = networks("endpoints=pruned", "endpoints.levels=1")
    assert computed == ["trunk of network 0", "network 0", "trunk of network 1", "network 1"]
    _, computed = networks("endpoints=pruned", "endpoints.levels=1", "endpoints.method=random")
    assert computed == ["network 0", "network 1"]
    _, computed = networks("endpoints=trajectory", "endpoints.epochs=[0]")
    assert computed == []


def test_the_part_of_a_network_is_in_its_key():
    _, computed = networks("endpoints=split_data", "seeds=[0,1]")
    assert computed == ["network 0", "network 1"]
    _, computed = networks("endpoints=split_data", "seeds=[2,1]")
    assert computed == ["network 2"]
    _, computed = networks("endpoints=split_data", "seeds=[1,0]")
    assert computed == ["network 1", "network 0"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["endpoints=trajectory"], "training has 2 epochs and keeps the last one anyway"),
        (["endpoints=trajectory", "endpoints.epochs=[1,1]"], "sort the epochs and give each once"),
        (["endpoints=trajectory", "endpoints.epochs=[]"], "give the epochs to be kept"),
        (["endpoints=trajectory", "endpoints.epochs=[-1]"], r"endpoints\.epochs\[0\]=-1 cannot be used"),
        (["endpoints=forked", "endpoints.shared_epochs=2"], "all networks would be one and the same"),
        (["endpoints=pruned", "endpoints.rewind_epoch=2"], "no epoch would be left"),
        (["endpoints=pruned", "endpoints.fraction=1"], r"endpoints\.fraction=1.* cannot be used"),
        (["endpoints=pruned", "endpoints.kept=[hidden]"], "no weight that would be pruned is called hidden"),
        (["endpoints=split_data", "seeds=[0,1,2,3,4,5,6,7,8,9,10]"], "11 networks cannot each have classes of their"),
        (["endpoints=split_data", "endpoints.share=0"], r"endpoints\.share=0.* cannot be used"),
        (["endpoints=permutation_trained", "endpoints.period=0"], r"endpoints\.period=0 cannot be used"),
        (["alignment.stacked=1"], r"there are 0 earlier checkpoints .* endpoints=trajectory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_line_before_any_training(overrides: list[str], message: str):
    with pytest.raises(UserError, match=message) as caught:
        whole.prepared(*QUICK, *overrides)
    assert "\n" not in str(caught.value)
