"""Pruning with rewinding: masks against torch's own, zeros that stay, levels that are nested, counts that agree."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lmc.endpoints.base import EARLIER_FILE, WEIGHTS_FILE, Ingredients
from lmc.endpoints.pruned import MASKS_FILE, Pruned
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State, load, of_model
from lmc.statistics.repair import Repair
from lmc.statistics.rescale import Rescale
from lmc.statistics.reset import Reset
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.training import masks as pruning
from lmc.training.adam import Adam
from lmc.training.constrained import ConstrainedTrainable
from lmc.training.loop import HISTORY_FILE, fit
from lmc.training.masks import Masked
from lmc.training.part import Part
from lmc.training.schedule.constant import Constant
from tests.endpoints.small import convnet, data, make, mlp, sgd

PRUNED = Pruned(levels=3, fraction=0.3, rewind_epoch=1)


def levels(folder: Path, label: int = 5) -> tuple[list[State], list[State]]:
    """The networks, the dense one first, and the masks of a network that was made."""
    within = folder / f"network{label}"
    count = len(list(within.glob("masks_*")))
    networks = [load(within / EARLIER_FILE.format(n)) for n in range(count)] + [load(within / WEIGHTS_FILE)]
    return networks, [load(within / MASKS_FILE.format(n + 1)) for n in range(count)]


@pytest.mark.parametrize("layer", [False, True])
def test_masks_are_those_of_torch(layer: bool):
    model = mlp()
    names = pruning.prunable(model)
    found = pruning.all_kept(of_model(model), names)
    modules = [(model.get_submodule(name.removesuffix(".weight")), "weight") for name in names]
    state = of_model(model)
    for _ in range(3):
        found = pruning.pruned(found, pruning.magnitudes(state, found), 0.3, layer=layer)
        if layer:
            for module, name in modules:
                prune.l1_unstructured(module, name, amount=0.3)
        else:
            prune.global_unstructured(modules, prune.L1Unstructured, amount=0.3)
        for name, (module, _) in zip(names, modules, strict=True):
            assert torch.equal(found[name], module.weight_mask.bool())


def test_weights_of_layers_are_pruned_and_nothing_else():
    assert pruning.prunable(mlp()) == ("hidden.0.weight", "hidden.1.weight", "classifier.weight")
    # Tied weights once, frozen ones never.
    assert pruning.prunable(convnet()) == ("0.weight", "3.weight", "8.weight", "10.weight")
    assert pruning.prunable(convnet(), ["1?.weight", "0.*"]) == ("3.weight", "8.weight")


def test_ties_go_in_the_order_of_the_tensors():
    masks = pruning.all_kept({"a": torch.ones(3, 1), "b": torch.ones(1, 2)}, ["a", "b"])
    found = pruning.pruned(masks, {"a": torch.ones(3, 1), "b": torch.ones(1, 2)}, 0.4, layer=False)
    assert found["a"].flatten().tolist() == [False, False, True]
    assert found["b"].flatten().tolist() == [True, True]


@pytest.mark.parametrize("optimiser", [sgd(), Adam(schedule=Constant(), epochs=2, batch_size=20, weight_decay=0.1)])
@pytest.mark.parametrize("network", [mlp, convnet])
def test_zeros_stay_zero_after_every_step(network: Callable[[], nn.Module], optimiser: object, tmp_path: Path):
    """With momentum and weight decay; the other weights move, and the gradient of a pruned one is not zero."""
    model = network()
    masks = pruning.all_kept(of_model(model), pruning.prunable(model))
    masks = pruning.pruned(masks, pruning.drawn(masks, generator(0, "masks")), 0.5, layer=False)
    seen = []

    class Watched(ConstrainedTrainable):
        def stepped(self) -> None:
            super().stepped()
            seen.append(all(bool((self._trained[name][~mask] == 0).all()) for name, mask in masks.items()))

    trainable = Watched(model, of_model(model), Masked(masks))
    before = trainable.final_state()
    fit(model, trainable, data(), optimiser, seed=0, folder=tmp_path, on_epoch=lambda record: None)
    found = trainable.final_state()
    assert seen
    assert all(seen)
    for name, mask in masks.items():
        assert (found[name][~mask] == 0).all()
        assert not torch.equal(found[name], before[name])
        assert pruning.of_state(found)[name].equal(mask)
    if network is convnet:
        assert torch.equal(found["8.weight"], found["9.weight"])


@pytest.mark.parametrize("method", ["iterative", "random"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_levels_are_nested_and_as_sparse_as_promised(ingredients: Ingredients, tmp_path: Path, method: str, scope: str):
    kind = Pruned(levels=3, fraction=0.3, rewind_epoch=1, method=method, scope=scope)
    make(kind, 5, ingredients, tmp_path)
    networks, masks = levels(tmp_path)
    assert len(networks) == 4
    promised = kind.moments(4)
    assert promised.axis == "sparsity"
    assert promised.values == pytest.approx([0, 0.3, 0.51, 0.657])
    total = sum(mask.numel() for mask in masks[0].values())
    for level, (network, mask) in enumerate(zip(networks[1:], masks, strict=True), 1):
        assert pruning.sparsity(mask) == pytest.approx(promised.values[level], abs=2 * len(mask) / total)
        for name, kept in mask.items():
            assert kept.dtype == torch.bool
            assert (network[name][~kept] == 0).all()
            assert level == 1 or not (kept & ~masks[level - 2][name]).any()
    lines = [json.loads(line) for line in (tmp_path / "network5" / HISTORY_FILE).read_text().splitlines()]
    assert [line["level"] for line in lines] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert lines[-1]["sparsity"] == pruning.sparsity(masks[-1])


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_random_and_one_shot_prune_as_many(ingredients: Ingredients, tmp_path: Path, scope: str):
    counts = {}
    for method in ("iterative", "random", "one_shot"):
        make(Pruned(levels=3, fraction=0.3, method=method, scope=scope), 5, ingredients, tmp_path / method)
        last = levels(tmp_path / method)[1][-1]
        by_tensor = {name: int(mask.sum()) for name, mask in last.items()}
        counts[method] = by_tensor if scope == "layer" else sum(by_tensor.values())
    assert counts["random"] == counts["iterative"]
    assert counts["one_shot"] == counts["iterative"]
    assert len(levels(tmp_path / "one_shot")[0]) == 2


def test_one_shot_takes_the_smallest_weights_of_the_dense_network(ingredients: Ingredients, tmp_path: Path):
    make(Pruned(levels=3, fraction=0.3, method="one_shot"), 5, ingredients, tmp_path)
    (dense, _), (masks,) = levels(tmp_path)
    kept = torch.cat([dense[name].abs()[mask] for name, mask in masks.items()])
    gone = torch.cat([dense[name].abs()[~mask] for name, mask in masks.items()])
    assert kept.min() >= gone.max()


def test_a_level_is_a_masked_training_from_the_rewound_weights(ingredients: Ingredients, tmp_path: Path):
    """Reference: the masks of the trained dense network, its weights after the epoch, the loop from there."""
    make(PRUNED, 5, ingredients, tmp_path)
    networks, masks = levels(tmp_path)
    trunk = tmp_path / "trunk5"
    dense, rewound = load(trunk / WEIGHTS_FILE), load(trunk / EARLIER_FILE.format(0))
    assert all(torch.equal(dense[name], tensor) for name, tensor in networks[0].items())
    for level, mask in enumerate(masks):
        before = pruning.all_kept(dense, list(mask)) if level == 0 else masks[level - 1]
        scores = pruning.magnitudes(networks[level], before)
        expected = pruning.pruned(before, scores, 0.3, layer=False)
        assert all(torch.equal(expected[name], kept) for name, kept in mask.items())
    model = ingredients.network()
    trainable = ConstrainedTrainable(model, rewound, Masked(masks[1]))
    fit(
        model,
        trainable,
        ingredients.dataset,
        ingredients.training,
        seed=5,
        folder=tmp_path / "again",
        on_epoch=lambda record: None,
        part=Part(start=1),
    )
    assert all(torch.equal(networks[2][name], tensor) for name, tensor in trainable.final_state().items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rewind_epoch": 4}, "training has 4 epochs, so that no epoch would be left"),
        ({"kept": ("classifer.weight",)}, r"called classifer\.weight; those are hidden\.0\.weight"),
        ({"levels": 40, "fraction": 0.9}, "every level has to remove some and leave some"),
        ({"fraction": 1e-6}, "every level has to remove some and leave some"),
        ({"kept": ("*",)}, "every level has to remove some and leave some"),
    ],
)
def test_what_cannot_be_pruned_is_refused(changed: dict[str, object], message: str):
    with pytest.raises(UserError, match=message) as caught:
        Pruned(**changed).check(mlp(), data(), sgd(), (0, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("correction", [Reset, Repair, Rescale])
def test_zeros_move_with_their_units_and_survive_the_corrections(
    ingredients: Ingredients, tmp_path: Path, correction: type[Reset]
):
    """Alignment and reset of the endpoints: t = 0 and t = 1 are corrected as the merged network is."""
    make(PRUNED, 5, ingredients, tmp_path)
    networks, masks = levels(tmp_path)
    sparse, mask = networks[-1], masks[-1]
    model = ingredients.network().eval()
    symmetry = discover(model, torch.zeros(2, *ingredients.dataset.input_shape))
    turn = Permutation.random(symmetry, generator(0, "turn"))
    moved, moved_mask = turn.apply(sparse), turn.apply({**sparse, **mask})
    bound = correction().bind(model, symmetry, [sparse, moved], ingredients.dataset)
    for corrected in (moved, bound(moved, (0.0, 1.0))):
        for name in mask:
            zeros = ~moved_mask[name].bool()
            assert zeros.any()
            assert not corrected[name][zeros].any(), name
            assert corrected[name][~zeros].any()
