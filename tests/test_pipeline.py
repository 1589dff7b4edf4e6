"""The whole experiment: what it computes, what it reuses, and what it refuses before any training."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from lmc import config, pipeline, plan, state
from lmc.architecture.mlp import MLP
from lmc.errors import UserError
from lmc.pipeline import Results
from lmc.store import fingerprint
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation

DATA = ["dataset=synthetic", "dataset.examples=60", "dataset.test_examples=30", "dataset.size=8", "dataset.channels=1"]
NETWORK = ["architecture.width=6", "architecture.depth=2"]
CONF = Path(config.conf_dir())
# Settings that keep the methods which learn by gradient descent brief.
BRIEF: dict[str, list[str]] = {}
COST = ["training.epochs=2", "training.batch_size=20", "evaluation.grid=3", "tracker.mode=disabled"]


class Stages:
    """An observer that remembers which stages had to be computed."""

    def __init__(self) -> None:
        self.computed: list[str] = []

    @contextmanager
    def stage(self, label: str, total: int | None) -> Iterator[Callable[[Mapping[str, float]], None]]:
        self.computed.append(label)
        yield lambda numbers: None


def composed(*overrides: str) -> dict[str, Any]:
    config.register()
    with initialize_config_dir(config.conf_dir(), version_base="1.3"):
        return config.plain(compose("config", list(overrides)))


def settings(*overrides: str) -> dict[str, Any]:
    """The settings of a small experiment; overrides of the same key win."""
    return composed(*DATA, *NETWORK, *COST, *overrides)


def run(*overrides: str) -> tuple[Results, list[str]]:
    stages = Stages()
    return pipeline.run(plan.prepare(settings(*overrides)), stages), stages.computed


def values(found: Results, **wanted: object) -> list[float]:
    return [row.value for row in found.rows if all(getattr(row, name) == value for name, value in wanted.items())]


def test_a_second_start_computes_nothing_and_finds_the_same():
    first, computed = run()
    assert computed == [
        "network 0",
        "network 1",
        "alignment 0-1",
        "alignment 0-1",
        "aligned path 0-1",
        "unaligned path 0-1",
    ]
    second, recomputed = run()
    assert recomputed == []
    assert second == first


def test_every_documented_number_is_there():
    found, _ = run()
    for path in ("aligned", "unaligned"):
        for split, examples in (("train", 60), ("test", 30)):
            for metric, unit in (("loss", "nats"), ("error", "fraction")):
                rows = [r for r in found.rows if (r.path, r.split, r.metric) == (path, split, metric)]
                assert {r.what for r in rows} == {
                    *("barrier", "barrier_mean_endpoints", "barrier_midpoint", "path_midpoint"),
                    *("path_min", "path_mean", "path_max", "path_length_mean"),
                }
                assert {(r.unit, r.examples, r.pair) for r in rows} == {(unit, examples, (0, 1))}
    assert len(values(found, what="endpoint")) == 2 * 2 * 2
    metrics = {"objective", "seconds", "l2_reduction", "matched_correlation"}
    assert {r.metric for r in found.rows if r.what == "alignment"} == metrics
    assert {name: len(units) for name, units in found.matchings[0, 1].items()} == {"hidden.0": 6, "hidden.1": 6}
    assert len(found.points) == 2 * 2 * 3


def test_the_ends_of_both_paths_are_the_trained_networks():
    found, _ = run()
    for label, t in ((0, 0.0), (1, 1.0)):
        (expected,) = values(found, what="endpoint", pair=(label,), split="test", metric="loss")
        measured = [p.loss for p in found.points if p.split == "test" and p.t == t]
        assert measured == pytest.approx([expected, expected], rel=1e-5)


def test_methods_share_networks_and_the_unaligned_line():
    found, _ = run()
    other, computed = run("alignment=activation_matching")
    assert computed == ["alignment 0-1", "aligned path 0-1"]
    plain, computed = run("alignment=none")
    assert computed == []
    line = [(p.split, p.t, p.loss) for p in found.points if p.path == "unaligned"]
    assert [(p.split, p.t, p.loss) for p in plain.points if p.path == "aligned"] == line
    assert [(p.split, p.t, p.loss) for p in other.points if p.path == "unaligned"] == line


def test_what_cannot_change_a_result_makes_no_new_artifact():
    run()
    _, computed = run("evaluation.batch_size=7", "training.checkpoint_every=2", "device=cpu")
    assert computed == []
    _, computed = run("seed=1")
    assert computed == ["alignment 0-1", "alignment 0-1", "aligned path 0-1", "unaligned path 0-1"]


def test_checkpoints_of_a_training_are_kept_and_stacked():
    """Reference: a training that ends after the epoch that is kept; the rate of learning is constant."""
    found, _ = run("endpoints=trajectory", "endpoints.epochs=[1]", "alignment.stacked=1")
    assert all(math.isfinite(row.value) for row in found.rows)
    root = Path(settings()["store"]["root"])
    kept = {file.read_bytes() for file in root.glob("endpoints/*/earlier_0.safetensors")}
    run("training.epochs=1")
    ended = {file.read_bytes() for file in root.glob("endpoints/*/weights.safetensors")}
    assert len(kept) == 2
    assert kept < ended


def test_a_new_seed_trains_only_its_own_network():
    run()
    _, computed = run("seeds=[1,2]")
    assert [label for label in computed if label.startswith("network")] == ["network 2"]


def test_more_networks_give_every_pair_and_the_barycentre():
    found, _ = run("seeds=[0,1,2]")
    assert {r.pair for r in found.rows if r.what == "barrier"} == {(0, 1), (0, 2), (1, 2)}
    for path in ("aligned", "unaligned"):
        rows = [r for r in found.rows if r.what == "barycentre" and r.path == path]
        assert {(r.split, r.metric, r.pair) for r in rows} == {
            (split, metric, (0, 1, 2)) for split in ("train", "test") for metric in ("loss", "error")
        }
    again, recomputed = run("seeds=[0,1,2]")
    assert recomputed == []
    assert again == found


def test_the_barycentre_of_two_equal_networks_and_a_third_is_where_it_should_be(tmp_path: Path):
    """Independent reference: the mean computed here, measured by hand."""
    files = networks(tmp_path, 3)
    found, _ = run("endpoints=checkpoint", f"endpoints.files=[{','.join(files)}]", "statistics=none")
    prepared = plan.prepare(settings())
    states = [state.load(Path(file)) for file in files]
    model = MLP(input_shape=(1, 8, 8), classes=prepared.dataset.classes, width=6, depth=2, norm="none")
    model.load_state_dict({name: sum(s[name] for s in states) / 3 for name in states[0]})
    test = prepared.dataset.test
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(prepared.dataset.normalise(test.images)), test.labels)
    (measured,) = values(found, what="barycentre", path="unaligned", split="test", metric="loss")
    assert measured == pytest.approx(float(loss), rel=1e-5)


def networks(folder: Path, count: int, *, classes: int = 10) -> list[str]:
    files = []
    for number in range(count):
        model = MLP(input_shape=(1, 8, 8), classes=classes, width=6, depth=2, norm="none")
        state.save(state.of_model(model), folder / f"{number}.safetensors")
        files.append(str(folder / f"{number}.safetensors"))
    return files


def test_own_checkpoints_need_no_training_and_a_planted_permutation_is_undone(tmp_path: Path):
    (file,) = networks(tmp_path, 1)
    weights = state.load(Path(file))
    model = MLP(input_shape=(1, 8, 8), classes=10, width=6, depth=2, norm="none")
    symmetry = discover(model, torch.zeros(2, 1, 8, 8))
    hidden = Permutation.random(symmetry, torch.Generator().manual_seed(0))
    torch.save(hidden.apply(weights), tmp_path / "moved.pt")
    found, computed = run("endpoints=checkpoint", f"endpoints.files=[{file},{tmp_path / 'moved.pt'}]")
    assert [label for label in computed if "path" in label] == ["aligned path 0-1", "unaligned path 0-1"]
    for metric in ("loss", "error"):
        (barrier,) = values(found, what="barrier", path="aligned", split="test", metric=metric)
        assert barrier == pytest.approx(0, abs=1e-6)
    (apart,) = values(found, what="path_length_mean", path="unaligned", split="test", metric="loss")
    (ends,) = {p.loss for p in found.points if p.path == "aligned" and p.split == "test" and p.t == 0}
    assert not math.isclose(apart, ends, rel_tol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("architecture", ["tiny_ten", "vgg11", "resnet20"])
def test_every_convolutional_architecture_goes_all_the_way(architecture: str, norm: str):
    chosen = [f"architecture={architecture}", f"architecture.norm={norm}", "architecture.width=0.0625"]
    small = composed(*DATA, "dataset.size=32", "dataset.channels=3", *COST, *chosen, "training.epochs=1")
    found = pipeline.run(plan.prepare(small), Stages())
    assert all(math.isfinite(row.value) for row in found.rows)


@pytest.mark.parametrize("curve", ["linear", "bezier", "polygonal_chain"])
@pytest.mark.parametrize("statistics", sorted(path.stem for path in CONF.glob("statistics/*.yaml")))
def test_every_curve_and_statistics_go_all_the_way(curve: str, statistics: str):
    found, computed = run(f"curve={curve}", f"statistics={statistics}", "architecture.norm=batch")
    assert ("curve 0-1" in computed) == (curve != "linear")
    assert all(math.isfinite(row.value) for row in found.rows)
    _, recomputed = run(f"curve={curve}", f"statistics={statistics}", "architecture.norm=batch")
    assert recomputed == []


@pytest.mark.parametrize(
    "alignment", sorted({path.stem for path in CONF.glob("alignment/*.yaml")} - {"transformer_matching"})
)
def test_every_alignment_goes_all_the_way(alignment: str):
    found, _ = run(f"alignment={alignment}", *BRIEF.get(alignment, []))
    assert all(math.isfinite(row.value) for row in found.rows)
    is_soft = not found.matchings
    assert is_soft == any(row.metric == "accuracy_change" for row in found.rows)
    _, recomputed = run(f"alignment={alignment}", *BRIEF.get(alignment, []))
    assert recomputed == []


def test_the_stream_of_a_transformer_is_mapped():
    """The orthogonal map of the folded network changes nothing in what it computes."""
    size = "{img_size: 8, patch_size: 4, embed_dim: 12, depth: 2, num_heads: 2}"
    network = ["architecture=timm", "architecture.name=vit_tiny_patch16_224", f"architecture.options={size}"]
    chosen = composed(*DATA, *COST, *network, "alignment=transformer_matching", "alignment.restarts=2")
    found = pipeline.run(plan.prepare(chosen), Stages())
    changes = values(found, metric="accuracy_change")
    assert changes == pytest.approx([0, 0], abs=1e-9)
    assert not values(found, metric="l2_reduction")
    with pytest.raises(UserError, match="no residual stream"):
        run("alignment=transformer_matching")


@pytest.mark.parametrize("merge", sorted(path.stem for path in CONF.glob("merge/*.yaml")))
def test_every_merge_goes_all_the_way(merge: str):
    found, computed = run("seeds=[0,1,2]", f"merge={merge}", *BRIEF.get(f"merge_{merge}", []))
    assert ("frame of all networks" in computed) == (merge != "pairs")
    assert {r.pair for r in found.rows if r.what == "barrier" and r.path == "aligned"} == {(0, 1), (0, 2), (1, 2)}
    (cycle_error,) = values(found, what="alignment", metric="cycle_error")
    assert cycle_error == 0 or merge == "pairs"
    assert values(found, what="barycentre", path="aligned", split="test", metric="loss")
    again, recomputed = run("seeds=[0,1,2]", f"merge={merge}", *BRIEF.get(f"merge_{merge}", []))
    assert recomputed == []
    assert again.rows == found.rows


def test_the_pairs_of_a_frame_are_consistent(tmp_path: Path):
    """Planted copies of one network: the frame undoes all of them, so that no pair has a barrier, nor their mean."""
    (file,) = networks(tmp_path, 1)
    weights = state.load(Path(file))
    symmetry = discover(MLP(input_shape=(1, 8, 8), classes=10, width=6, depth=2, norm="none"), torch.zeros(2, 1, 8, 8))
    files = [file]
    for seed in (1, 2):
        hidden = Permutation.random(symmetry, torch.Generator().manual_seed(seed))
        state.save(hidden.apply(weights), tmp_path / f"moved{seed}.safetensors")
        files.append(str(tmp_path / f"moved{seed}.safetensors"))
    found, _ = run("endpoints=checkpoint", f"endpoints.files=[{','.join(files)}]", "merge=many", "statistics=none")
    assert values(found, what="barrier", path="aligned", metric="loss") == pytest.approx([0] * 6, abs=1e-6)
    assert values(found, metric="l2_reduction") == pytest.approx([1] * 3, abs=1e-6)
    (mean,) = values(found, what="barycentre", path="aligned", split="test", metric="loss")
    (own, *_) = values(found, what="endpoint", split="test", metric="loss")
    assert mean == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["merge=many", "alignment=canonical_correlation"], "merge=many needs an alignment that gives a permutation"),
        (["merge=many", "alignment=none"], "alignment=none leaves every network where it is"),
        (
            ["merge=many", "alignment.stacked=1", "endpoints=trajectory", "endpoints.epochs=[1]"],
            "merge=many cannot stack checkpoints",
        ),
        (["alignment.stacked=1"], r"alignment\.stacked=1: there are 0 earlier checkpoints of each network"),
        (["endpoints=trajectory", "endpoints.epochs=[2]"], "training has 2 epochs and keeps the last one anyway"),
        (["endpoints=trajectory", "endpoints.epochs=[1,1]"], "sort the epochs and give each once"),
        (["endpoints=checkpoint", "endpoints.files=[a.pt,b.pt]", "endpoints.earlier=[[c.pt]]"], "the same number"),
        (["seeds=[]"], "at least two seeds"),
        (["seeds=[0]"], "at least two seeds"),
        (["seeds=[0,0]"], "a seed is there twice"),
        (["architecture.width=-3"], r"architecture\.width=-3 cannot be used: Input should be greater than 0"),
        (["architecture.width=wide"], "architecture.width='wide' cannot be used"),
        (["evaluation.grid=[0.1,1]"], "a grid without 0 and 1"),
        (["evaluation.grid=4"], "0, 1/2 and 1"),
        (["device=cuda:9"], "device=cuda:9 does not exist here"),
        (["device=toaster"], "device=toaster does not exist here"),
        (["dataset=mnist", "dataset.root=/nowhere", "dataset.download=false"], "/nowhere"),
        (["architecture=vgg16"], "vgg16 needs images of at least 32 x 32 pixels, these are 8 x 8"),
        (["evaluation.test_examples=31"], "31 examples were asked for, but there are 30"),
        (["statistics.examples=61"], "61"),
        (["dataset.train_size=61"], "61"),
        (["endpoints=checkpoint", "endpoints.files=[/nowhere/a.pt,/nowhere/b.pt]"], "/nowhere/a.pt does not exist"),
        (["endpoints=checkpoint", "endpoints.files=[]"], "at least two files"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_before_any_training(overrides: list[str], message: str):
    groups = {override.partition("=")[0] for override in overrides}
    data = [] if "dataset" in groups else DATA
    network = [] if "architecture" in groups else NETWORK
    with pytest.raises(UserError, match=message) as caught:
        plan.prepare(composed(*data, *network, *COST, *overrides))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_architecture_names_the_first_tensor(tmp_path: Path):
    files = networks(tmp_path, 2, classes=7)
    message = r"0\.safetensors is of another architecture: tensor 'classifier\.weight' has shape \(7, 6\)"
    with pytest.raises(UserError, match=message):
        run("endpoints=checkpoint", f"endpoints.files=[{','.join(files)}]")


def test_divergence_stops_with_the_epoch_and_a_hint():
    with pytest.raises(UserError, match=r"training diverged: .* in epoch \d, step \d.*lower training\.learning_rate"):
        run("training=sgd", "training.learning_rate=1e30", "dataset.noise=1")


def test_an_artifact_that_was_damaged_is_made_again(caplog: pytest.LogCaptureFixture):
    found, _ = run()
    root = Path(settings()["store"]["root"])
    permutation = next(root.glob("alignment/*/permutation.safetensors"))
    permutation.write_bytes(permutation.read_bytes()[:-1])
    again, computed = run()
    assert computed == ["alignment 0-1"]
    assert again.points == found.points
    assert any("damaged artifact" in record.getMessage() for record in caplog.records)


def test_records_tell_what_an_artifact_was_made_of():
    run()
    root = Path(settings()["store"]["root"])
    record = json.loads(next(root.glob("endpoints/*/record.json")).read_text(encoding="utf-8"))
    assert record["settings"]["architecture"]["width"] == 6
    assert record["settings"]["training"]["epochs"] == 2
    assert set(record["files"]) == {"weights.safetensors", "history.jsonl"}


def test_keys_of_the_default_experiment_are_pinned():
    """A changed default, name or version makes other keys, and networks that were trained are trained again.

    If that is meant, put the new values here and say why in the commit.
    """
    chosen = composed("dataset=digits")
    given = {"architecture": ("input_shape", "classes")}
    keys = {
        group: fingerprint(group, 1, config.identity(chosen[group], group, given.get(group, ())))[:12]
        for group in (
            "dataset",
            "architecture",
            "training",
            "endpoints",
            "alignment",
            "curve",
            "statistics",
            "evaluation",
        )
    }
    assert keys == {
        "dataset": "8d4bdae67013",
        "architecture": "24198926d49d",
        "training": "0c20cbaf61ec",
        "endpoints": "716879f7d3e3",
        "alignment": "9b03d6aea547",
        "curve": "aa92bf2862ff",
        "statistics": "5f30ee5354b3",
        "evaluation": "6dc96ce562e1",
    }
