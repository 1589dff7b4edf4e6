"""The entry point `lmc`. It imports nothing heavy, so that shell completion is quick."""

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lmc import command_line, config
from lmc.errors import UserError, refusal

if TYPE_CHECKING:
    from omegaconf import ListConfig

    from lmc.tracker.wandb import WandB

log = logging.getLogger(__name__)

config.register()


@hydra.main(version_base="1.3", config_path=config.conf_dir(), config_name="config")
def job(composed: DictConfig) -> None:
    """Run one experiment, the only one or a job of a sweep."""
    try:
        experiment(config.plain(composed))
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # Hydra names the job and goes on with the others
        sys.exit(f"lmc: {error}")


def experiment(settings: dict[str, Any]) -> None:
    """Measure, write and draw the results, and mirror them to the tracker."""
    from lmc import pipeline, results
    from lmc.plan import prepare
    from lmc.provenance import hardware, provenance
    from lmc.report.run import write_run

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    choices = {group: _choice(name) for group, name in hydra_config.runtime.choices.items() if name}
    plan = prepare(settings)
    tracker: WandB = config.build(settings["tracker"], "tracker")
    with tracker.start(
        settings,
        folder,
        group="_".join(Path(hydra_config.sweep.dir).parts[-2:]) if hydra_config.mode == RunMode.MULTIRUN else None,
        name=hydra_config.job.override_dirname or "default",
        tags=[choices[group] for group in ("dataset", "architecture", "alignment", "curve")],
    ) as run:
        found = pipeline.run(plan, run)
        results.write_rows(folder / results.RESULTS_FILE, found.rows)
        results.write_path(folder / results.PATH_FILE, found.points)
        for pair, matching in found.matchings.items():
            results.write_matching(folder, pair, matching)
        for name, file in found.files.items():
            shutil.copyfile(file, folder / name)
        report = write_run(folder)
        run.rows(found.rows)
        run.path(found.points)
        for figure in report.figures:
            run.figure(figure.stem, figure)
        made = {**provenance(), "hardware": hardware(str(plan.device)), "artifacts": plan.costs}
        results.write_summary(folder / results.SUMMARY_FILE, settings, choices, found.rows, made)
    log.info("%s", report.table)
    log.info("plot: %s", folder / "barrier.png")
    log.info("numbers: %s", folder / results.RESULTS_FILE)


def _choice(name: "str | ListConfig") -> str:
    """The chosen option of a group, or all of them, where there may be many."""
    return name if isinstance(name, str) else ",".join(name)


def main() -> None:
    """Run the command line; a mistake of the user becomes one line on standard error and exit status 1."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from lmc import cluster
    from lmc.report.callback import pending, write_pending

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions come up to here instead of being printed by Hydra
    try:
        command_line.check_choices(sys.argv[1:])
        job()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"lmc: {command_line.explain(error, sys.argv[1:])}")
    except OSError as error:
        if (reason := refusal(error)) is None:
            raise
        sys.exit(f"lmc: cannot write {error.filename or 'the results'}: {reason}")
    except Exception as error:
        if not cluster.concerns(error):
            raise
        sys.exit(f"lmc: {cluster.explain(error, pending())}")
    finally:
        write_pending()


if __name__ == "__main__":
    main()
