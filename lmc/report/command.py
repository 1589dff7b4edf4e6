"""The command lmc-report: writes the report of a sweep again, at will."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lmc.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lmc-report FOLDER...`; returns the exit status: 0, or 1 after one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="lmc-report",
        description="Write report.md, .csv, .tex, .html and paths.png, .svg of the finished runs below FOLDER...",
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="a run, a sweep, or a folder of them")
    parser.add_argument(
        "--out", type=Path, help="where to write (default: FOLDER; the current folder if several are given)"
    )
    given = parser.parse_args(arguments)
    out = given.out or (given.folders[0] if len(given.folders) == 1 else Path())
    from lmc.report.sweep import write_sweep

    try:
        text = write_sweep(given.folders, out)
    except (UserError, OSError) as error:
        sys.stderr.write(f"lmc-report: {error}\n")
        return 1
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
