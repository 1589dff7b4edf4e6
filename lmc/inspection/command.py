"""The command lmc-symmetry: which hidden units of a network can change places, found, proved and drawn."""

import argparse
import ast
import contextlib
import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmc.errors import UserError

if TYPE_CHECKING:
    from lmc.inspection.inspection import Inspection
    from lmc.inspection.sources.request import Input

_EPILOG = """\
NETWORK is one of
  torchvision:resnet50     a builder of torchvision
  timm:convnext_atto       a network of timm
  transformers:bert        a model type of transformers, a class (BertForMaskedLM), or the path of a config.json
  package.module:callable  a module, its class, or a function that makes it; the current folder is importable
  resnet20                 an architecture of lmc (conf/architecture)
always with random weights; NAME=VALUE are arguments of the builder (num_hidden_layers=2 width=2).
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="lmc-symmetry",
        description="Show which hidden units of a network can be permuted without changing what it computes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("network", metavar="NETWORK", nargs="?", help="where the network comes from; see below")
    made.add_argument("settings", metavar="NAME=VALUE", nargs="*", help="arguments of its builder")
    made.add_argument("--set", metavar="NAME=VALUE", nargs="+", action="extend", default=[], help="the same")
    made.add_argument("--input", metavar="SHAPE", help="1,3,224,224 or 1,16:int64 (default: the network's own)")
    made.add_argument("--weights", metavar="FILE", type=Path, help="safetensors, or a .pt of tensors alone")
    made.add_argument("--meta", action="store_true", help="shapes alone, for large networks; nothing is verified")
    made.add_argument("--no-verify", dest="verify", action="store_false", help="do not prove it by running")
    made.add_argument("--seed", metavar="N", type=int, default=0, help="of random weights, inputs and permutations")
    made.add_argument("--json", action="store_true", help="print JSON")
    made.add_argument("--plot", metavar="FILE", type=Path, help="draw the groups along the network: .png, .svg or .pdf")
    survey = made.add_argument_group("survey of many networks, as a Markdown table")
    survey.add_argument("--survey", metavar="NAMES", help="torchvision, timm:a,b,c, or networks separated by commas")
    survey.add_argument("--out", metavar="FILE", type=Path, help="the table; a second start goes on where it stopped")
    survey.add_argument("--no-matching", dest="matching", action="store_false", help="do not match permuted copies")
    survey.add_argument("--jobs", metavar="N", type=int, default=1, help="networks at a time (default 1)")
    survey.add_argument("--limit", metavar="S", type=float, default=900, help="seconds for a network (default 900)")
    survey.add_argument("--retry", action="store_true", help="try again what has failed before")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 after one line on standard error. Wrong usage exits with 2."""
    line = parser()
    written = list(sys.argv[1:] if arguments is None else arguments)
    given = line.parse_intermixed_args(written)
    _check_usage(line, given)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="lmc-symmetry: %(message)s")
    for noisy in ("torch", "matplotlib", "timm", "transformers", "httpx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the user's own code may print
            text = _survey(line, given, written) if given.survey else _show(line, given)
    except UserError as error:
        sys.stderr.write(f"lmc-symmetry: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("lmc-symmetry: interrupted\n")
        return 130
    return _print(text)


def _check_usage(line: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Exit with 2 where the arguments make no sense together."""
    if given.survey and given.network:
        line.error("give a NETWORK or --survey, not both")
    if not given.survey and not given.network:
        line.error("give a NETWORK, for example torchvision:resnet50")
    if given.survey and not given.out:
        line.error("--survey needs --out FILE.md")
    if given.out and not given.survey:
        line.error("--out belongs to --survey; use --plot FILE for a picture, or redirect the output")
    if given.meta and given.weights:
        line.error("--weights has no effect on the meta device; leave out --meta")
    if given.jobs < 1 or given.limit <= 0:
        line.error("--jobs and --limit are positive")
    if given.seed < 0:
        line.error("--seed is 0 or larger")


def _show(line: argparse.ArgumentParser, given: argparse.Namespace) -> str:
    """Inspect one network; return what is printed."""
    settings, shape = _settings(line, [*given.settings, *given.set]), _input(line, given.input)
    if given.plot:
        from lmc.inspection.picture import check_target

        check_target(given.plot)

    from lmc import state
    from lmc.inspection.inspection import inspect
    from lmc.inspection.network import build
    from lmc.inspection.sources.request import Request

    weights = state.load(given.weights) if given.weights else None
    started = time.perf_counter()
    network = build(Request(given.network, settings, shape, given.seed, given.meta))
    if weights is not None:
        network.load(weights, str(given.weights))
    seconds = time.perf_counter() - started
    found = inspect(network, build_seconds=seconds, run=given.verify and not network.is_meta, seed=given.seed)
    if given.plot:
        _plot(found, given.plot)
    if given.json:
        return json.dumps(found.document(), indent=2) + "\n"
    from lmc.inspection.table import as_text

    is_terminal = sys.__stdout__ is not None and sys.__stdout__.isatty()
    width = max(80, shutil.get_terminal_size().columns) if is_terminal else 140
    return as_text(found, width=width, colour=is_terminal and "NO_COLOR" not in os.environ)


def _plot(found: "Inspection", path: Path) -> None:
    from lmc.inspection.order import order_of_use
    from lmc.inspection.picture import picture, write

    symmetry = found.symmetry
    subtitle = (
        f"{len(symmetry.groups)} groups, {found.movable:,} hidden units can move ({found.share:.1%}), "
        f"10^{symmetry.log10_size:,.0f} equivalent networks"
    )
    order = order_of_use(found.network.model, found.network.example)
    write(picture(symmetry, found.network.spec, subtitle, order), path)
    logging.getLogger(__name__).info("picture: %s", path)


def _settings(line: argparse.ArgumentParser, entries: Sequence[str]) -> dict[str, Any]:
    """The NAME=VALUE arguments."""
    found = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or not name.isidentifier():
            line.error(f"{entry!r} is not NAME=VALUE")
        found[name] = _value(value)
    return found


def _value(text: str) -> object:
    """A value as JSON or as Python writes it (2, 1e-3, true, None, [1, 2]), else the text itself."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            pass
    return text


def _input(line: argparse.ArgumentParser, text: str | None) -> "Input | None":
    if text is None:
        return None
    from lmc.inspection.sources.request import Input

    try:
        return Input.parse(text)
    except ValueError as error:
        line.error(f"--input {error}")


def _survey(line: argparse.ArgumentParser, given: argparse.Namespace, arguments: Sequence[str]) -> str:
    from lmc.inspection.measure import Task
    from lmc.inspection.survey import Survey

    shape = _input(line, given.input)
    common = Task("", _settings(line, given.set), shape, given.seed, given.verify, given.matching)
    survey = Survey(given.out, common, limit=given.limit, jobs=given.jobs, command=shlex.join([line.prog, *arguments]))
    survey.run(given.survey, retry=given.retry)
    return f"{given.out}\n"


def _print(text: str) -> int:
    """Write the result; a reader that has seen enough (`| head`) is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
    return 0


if __name__ == "__main__":
    sys.exit(main())
