"""The command lmc-report: writes the report of a sweep again, at will, or says what an experiment would do."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lmc.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lmc-report`; returns the exit status: 0, or 1 after one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="lmc-report",
        description="Write report.md, .csv, .tex, .html and paths.png, .svg of the finished runs below FOLDER..., or, "
        "with --plan, list the jobs of an experiment, what of them is there, and how long the rest takes here.",
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="*", help="a run, a sweep, or a folder of them")
    parser.add_argument(
        "--out", type=Path, help="where to write (default: FOLDER; the current folder if several are given)"
    )
    parser.add_argument(
        "--plan",
        metavar="OVERRIDE",
        nargs="+",
        help="the arguments of lmc, for example experiment=tatro2020/table1 budget=quick; nothing is computed",
    )
    given = parser.parse_intermixed_args(arguments)
    if bool(given.folders) == bool(given.plan):
        parser.error("give folders to report on, or --plan with the arguments of lmc")
    try:
        text = _planned(given.plan) if given.plan else _written([Path(name) for name in given.folders], given.out)
    except (UserError, OSError) as error:
        sys.stderr.write(f"lmc-report: {error}\n")
        return 1
    sys.stdout.write(text + "\n")
    return 0


def _written(folders: Sequence[Path], out: Path | None) -> str:
    from lmc.report.sweep import write_sweep

    return write_sweep(folders, out or (folders[0] if len(folders) == 1 else Path()))


def _planned(overrides: Sequence[str]) -> str:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from lmc import command_line
    from lmc.forecast.listing import listing

    try:
        return listing(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(command_line.explain(error, overrides)) from None


if __name__ == "__main__":
    sys.exit(main())
