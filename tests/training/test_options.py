"""Every option file of the training, its schedules, the curves and the recipes composes and becomes an object."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lmc.config import build, identity, settings
from lmc.dataset.augmentation import Augmentation
from lmc.errors import UserError
from lmc.training.recipe import Training
from lmc.training.schedule.base import Schedule

CONF = Path(__file__).resolve().parents[2] / "conf"
TRAININGS = sorted(path.stem for path in (CONF / "training").glob("*.yaml"))
SCHEDULES = sorted(path.stem for path in (CONF / "training" / "schedule").glob("*.yaml"))
# All but the one for networks that were trained elsewhere.
RECIPES = sorted({path.stem for path in (CONF / "recipe").glob("*.yaml")} - {"imagenet_checkpoints"})
assert TRAININGS
assert SCHEDULES
assert RECIPES

Compose = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Compose:
    """Composes the groups under test with a root configuration that holds nothing else."""
    root = tmp_path_factory.mktemp("conf")
    lines = ["defaults:", "  - training: adam", "  - curve: linear", "  - _self_", "  - recipe: null"]
    search = ["hydra:", "  searchpath:", f"    - file://{CONF}"]
    (root / "root.yaml").write_text("\n".join(lines + search))

    def run(*overrides: str) -> dict[str, Any]:
        with initialize_config_dir(str(root), version_base="1.3"):
            plain = OmegaConf.to_container(compose("root", list(overrides)), resolve=True)
        assert isinstance(plain, dict)
        return {str(name): value for name, value in plain.items()}

    return run


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_is_built_and_lists_every_setting_at_its_default(composed: Compose, name: str) -> None:
    node = composed(f"training={name}")["training"]
    training = build(node, "training")
    assert isinstance(training, Training)
    assert set(node) == set(settings(node, "training"))
    assert node["_target_"].rsplit(".", 1)[0] == f"lmc.training.{name}"
    assert training == type(training)(schedule=training.schedule)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_chosen_by_its_name_and_lists_every_setting(composed: Compose, name: str) -> None:
    node = composed(f"training/schedule={name}")["training"]
    training = build(node, "training")
    assert isinstance(training.schedule, Schedule)
    assert set(node["schedule"]) == set(settings(node["schedule"], "training.schedule"))
    assert node["schedule"]["_target_"].rsplit(".", 1)[0] == f"lmc.training.schedule.{name}"


def test_checkpoints_are_no_part_of_the_identity(composed: Compose) -> None:
    often, rarely = (composed(f"training.checkpoint_every={n}")["training"] for n in (1, 7))
    assert identity(often, "training") == identity(rarely, "training")
    assert build(often, "training") == replace(build(rarely, "training"), checkpoint_every=1)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_training_and_augmentation(composed: Compose, name: str) -> None:
    found = composed(f"recipe={name}")
    assert isinstance(build(found["training"], "training"), Training)
    augmentation = {"_target_": "lmc.dataset.augmentation.Augmentation", **found["dataset"]["augmentation"]}
    assert isinstance(build(augmentation, "dataset.augmentation"), Augmentation)
    assert build(found["curve"], "curve").training is None or not name.endswith("_endpoints")


# Peak rate, epochs, batch size, weight decay and warm-up as the papers' code has them; then the rate at some epoch.
PUBLISHED = {
    "git_rebasin_mlp": ("Adam", 1e-3, 100, 500, 0.0, 0, (50, 1e-3)),
    "git_rebasin_mlp_cifar10": ("Adam", 1e-3, 100, 100, 0.0, 0, (50, 1e-3)),
    "git_rebasin_vgg": ("SGD", 0.1, 100, 100, 5e-4, 1, (50.5, 0.05)),
    "git_rebasin_resnet20": ("SGD", 0.1, 250, 100, 1e-4, 5, (127.5, 0.05)),
    "repair_vgg11": ("SGD", 0.08, 100, 500, 5e-4, 5, (52.5, 0.04)),
    "repair_resnet20": ("SGD", 0.4, 100, 500, 5e-4, 5, (2.5, 0.2)),
    "repair_mlp": ("SGD", 0.05, 50, 1000, 0.0, 5, (27.5, 0.025)),
    "repair_resnet18": ("SGD", 0.4, 200, 512, 5e-4, 5, (102.5, 0.2)),
    "sharma_cifar": ("SGD", 0.1, 160, 128, 1e-4, 1, (100, 0.01)),
    "tatro_endpoints": ("SGD", 0.1, 250, 128, 5e-4, 0, (40, 0.1 * 0.25 * 0.9996**40)),
    "tatro": ("SGD", 0.1, 250, 128, 5e-4, 0, (40, 0.1 * 0.25 * 0.9996**40)),
    "garipov_vgg16_endpoints": ("SGD", 0.05, 200, 128, 5e-4, 0, (139, 0.05 * 0.505)),
    "garipov_vgg16": ("SGD", 0.05, 200, 128, 5e-4, 0, (139, 0.05 * 0.505)),
    "garipov_pre_resnet164_endpoints": ("SGD", 0.1, 150, 128, 3e-4, 0, (104, 0.1 * 0.505)),
    "garipov_pre_resnet164": ("SGD", 0.1, 150, 128, 3e-4, 0, (104, 0.1 * 0.505)),
    "garipov_wide_resnet_endpoints": ("SGD", 0.1, 200, 128, 5e-4, 0, (139, 0.1 * 0.505)),
    "garipov_wide_resnet": ("SGD", 0.1, 200, 128, 5e-4, 0, (139, 0.1 * 0.505)),
    "draxler_resnet_endpoints": ("SGD", 0.1, 164, 128, 1e-4, 0, (100, 0.01)),
    "entezari": ("SGD", 1e-3, 1000, 64, 0.0, 0, (999, 1e-3)),
    "adilova_resnet18": ("SGD", 0.05, 200, 64, 5e-4, 0.128, (100.064, 0.025)),
    "sonthalia_wide_resnet": ("SGD", 0.1, 200, 128, 5e-4, 0, (130, 0.1 * 0.2**2)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_holds_the_published_numbers(composed: Compose, name: str) -> None:
    kind, rate, epochs, batch, decay, warmup, (epoch, there) = PUBLISHED[name]
    training = build(composed(f"recipe={name}")["training"], "training")
    found = (training.learning_rate, training.epochs, training.batch_size, training.weight_decay)
    assert (type(training).__name__, *found, training.warmup_epochs) == (kind, rate, epochs, batch, decay, warmup)
    assert training.rate(epoch) == pytest.approx(there)


@pytest.mark.parametrize(
    ("name", "rate", "epochs", "decay"),
    [
        ("tatro", 0.1, 250, 5e-4),
        ("garipov_vgg16", 0.015, 600, 5e-4),
        ("garipov_pre_resnet164", 0.03, 200, 3e-4),
        ("garipov_wide_resnet", 0.03, 200, 5e-4),
    ],
)
def test_a_recipe_of_a_curve_sets_its_training(
    composed: Compose, name: str, rate: float, epochs: int, decay: float
) -> None:
    for curve in ("bezier", "polygonal_chain"):
        found = build(composed(f"recipe={name}", f"curve={curve}")["curve"], "curve")
        assert found.decay_on_sample
        assert found.bends == 1
        assert (found.training.learning_rate, found.training.epochs) == (rate, epochs)
        assert found.training.weight_decay == decay


def test_the_training_of_a_curve_is_a_node_of_its_own(composed: Compose) -> None:
    overrides = ["training@curve.training=sgd", "training/schedule@curve.training.schedule=cosine"]
    found = composed("curve=bezier", *overrides, "curve.training.epochs=7")
    curve = build(found["curve"], "curve")
    assert (type(curve.training).__name__, curve.training.epochs) == ("SGD", 7)
    assert type(curve.training.schedule).__name__ == "Cosine"
    assert type(build(found["training"], "training")).__name__ == "Adam"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rate=-1", "training.learning_rate=-1"),
        ("training.precision=float16", "training.precision='float16'"),
        ("training.batch_size=1", "training.batch_size=1"),
        ("training.epochs=half", "training.epochs='half'"),
        ("+training.momentun=0.9", "training.momentun is not a setting"),
        ("training.schedule=cosine", "training.schedule"),
    ],
)
def test_bad_settings_are_refused_by_name(composed: Compose, override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        build(composed(override)["training"], "training")
    assert message in str(error.value)
