"""The presets of conf/hydra/launcher: what they set, what they refuse, and what is said where something is missing."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from lmc import cluster, command_line, config
from tests.test_app import MODULE, SMALL, lmc

FOLDER = Path(config.conf_dir(), "hydra", "launcher")
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PLUGINS = {"workstation": "joblib", "slurm": "submitit", "shared_gpu": "ray"}
SETTINGS = {"workstation": "n_jobs", "slurm": "timeout_min", "shared_gpu": None}


def installed(preset: str) -> bool:
    return importlib.util.find_spec(f"hydra_plugins.hydra_{PLUGINS[preset]}_launcher") is not None


def present(preset: str) -> object:
    reason = f"hydra-{PLUGINS[preset]}-launcher is not installed"
    return pytest.param(preset, marks=pytest.mark.skipif(not installed(preset), reason=reason))


def composed(*overrides: str) -> DictConfig:
    config.register()
    with initialize_config_dir(config.conf_dir(), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True).hydra.launcher


def leaves(node: dict[str, object], above: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in node.items():
        found |= leaves(value, f"{above}{name}.") if isinstance(value, dict) and value else {f"{above}{name}": value}
    return found


def test_the_presets_are_those_that_are_tested():
    assert set(PRESETS) == set(PLUGINS)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_setting_has_a_comment(preset: str):
    lines = (FOLDER / f"{preset}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    for number, line in enumerate(lines):
        name, colon, value = line.partition("#")[0].partition(":")
        nested = colon and not value.strip() and name.strip() in {"ray", "init", "remote", "defaults"}
        if colon and not nested and not line.lstrip().startswith(("#", "-")):
            assert "#" in line or lines[number - 1].startswith("#"), line


@pytest.mark.parametrize("preset", [present(name) for name in PRESETS])
def test_a_preset_sets_what_its_file_says_in_the_plugin_of_hydra(preset: str):
    file = yaml.safe_load((FOLDER / f"{preset}.yaml").read_text(encoding="utf-8"))
    node = composed(f"hydra/launcher={preset}")
    assert node._target_.startswith(f"hydra_plugins.hydra_{PLUGINS[preset]}_launcher.")
    del file["defaults"]
    for name, value in leaves(file).items():
        if not (isinstance(value, str) and "${" in value):
            assert str(OmegaConf.select(node, name)) == str(value), name  # joblib's numbers are text to its plugin


@pytest.mark.parametrize("preset", [present(name) for name in PRESETS])
def test_a_wrong_setting_is_refused_in_one_line(preset: str):
    wrong = {"hydra.launcher.setting_that_is_none=1": "hydra.launcher.setting_that_is_none"}
    if SETTINGS[preset]:
        wrong[f"hydra.launcher.{SETTINGS[preset]}=many"] = f"Error merging override hydra.launcher.{SETTINGS[preset]}"
    for override, said in wrong.items():
        with pytest.raises(HydraException) as caught:
            composed(f"hydra/launcher={preset}", override)
        GlobalHydra.instance().clear()
        line = command_line.explain(caught.value, [f"hydra/launcher={preset}", override])
        assert said in line
        assert "\n" not in line


@pytest.mark.parametrize("preset", [name for name in PRESETS if not installed(name)])
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(preset: str, tmp_path: Path):
    done = lmc(tmp_path, "-m", *SMALL, f"hydra/launcher={preset}", "seed=0,1")
    assert done.returncode == 1
    extra = {"submitit": "slurm"}.get(PLUGINS[preset], PLUGINS[preset])
    assert done.stderr.endswith(f'is not installed; pip install "lmc[{extra}]"\n')
    assert done.stderr.count("\n") == 1


def test_where_there_is_no_slurm_a_line_says_so(tmp_path: Path):
    pytest.importorskip("submitit")
    bare = str(Path(sys.executable).parent)  # a path without srun
    done = lmc(tmp_path, "-m", *SMALL, "hydra/launcher=slurm", "seed=0,1", PATH=bare)
    assert done.returncode == 1
    assert done.stderr == (
        "lmc: hydra/launcher=slurm finds no srun; start the sweep where Slurm's commands are, on a login node\n"
    )


def test_a_job_out_of_time_is_told_how_to_get_more(tmp_path: Path):
    utils = pytest.importorskip("submitit.core.utils")
    error = utils.UncompletedJobError("Job not requeued because: timed-out too many times.")
    assert cluster.concerns(error)
    assert cluster.explain(error, [tmp_path]) == (
        "Job not requeued because: timed-out too many times. Raise hydra.launcher.timeout_min or max_num_timeout, or "
        "start the sweep again: what was computed is kept, a training up to its last epoch"
    )
    assert not cluster.concerns(RuntimeError("something else"))
    assert not cluster.concerns(utils.FailedJobError("Job (task=0) failed during processing with trace:\n..."))


@pytest.mark.skipif(not installed("shared_gpu"), reason="hydra-ray-launcher is not installed")
def test_jobs_of_ray_share_what_they_train(tmp_path: Path):
    small = ["hydra/launcher=shared_gpu", "hydra.launcher.ray.remote.num_gpus=0", "hydra.launcher.ray.init.num_cpus=2"]
    command = [sys.executable, *MODULE[3:], "-m", *SMALL, *small, "alignment=none,weight_matching"]  # Ray itself warns
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    logs = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("multirun/*-*-*/*/*/lmc.log"))
    assert logs.count("network 0: 2 steps") == 1
    assert len(list(tmp_path.glob("multirun/*-*-*/*/*/summary.json"))) == 2
    assert list(tmp_path.glob("multirun/*-*-*/*/report.md"))
