"""The survey as a Markdown table."""

import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

_TEXT = """\
Every hidden unit that moves was found by tracing the network and proved by running it: *error* is the largest change
of the outputs under random elements of the whole symmetry (float64, relative to the largest output, random weights),
*control* the smallest one when one tensor of a group is permuted without the others. *Groups* counts those inside the
units of others (dimensions inside heads) behind the plus sign; *move* is the share of hidden units that change places,
the others keep theirs because something in the network depends on their order; *equivalent* is the number of networks
that compute the same.

*Activations* and *weights* are the shares of units that each method brings back to their places when a network with
random weights is matched to a copy of itself that a random element of the symmetry has permuted: activation matching
on the inputs of the nonlinearities for {inputs} random inputs, weight matching with a single descent from the centre.
*Twins* are units that no activation tells apart on these inputs. Seconds are those of tracing and discovery.
"""
_HEADS = (
    "network",
    "parameters",
    "groups",
    "units that move",
    "move",
    "equivalent",
    "error",
    "control",
    "activations",
    "weights",
    "twins",
    "seconds",
)


def as_markdown(rows: Sequence[Mapping[str, Any]], inputs: int = 8) -> str:
    """Return the table with the commands that made it, the machine and what the columns mean.

    Args:
        rows: of the survey, in the order of the table.
        inputs: how many random inputs activation matching saw.
    """
    commands = [str(command) for command in dict.fromkeys(row.get("command") for row in rows) if command]
    done = [row for row in rows if "failed" not in row]
    lines = ["# The symmetry of networks", ""]
    if commands:
        lines += ["```sh", *commands, "```", ""]
    lines += [f"{_machine()}. {_total(rows, done)}", "", _TEXT.format(inputs=inputs)]
    lines += [_line(_HEADS), _line(["---", *["---:"] * (len(_HEADS) - 1)])]
    lines += [_line(_cells(row)) for row in rows]
    if reasons := list(_reasons(done)):
        lines += ["", "Not matched:", "", *(f"- {_safe(reason)}" for reason in reasons)]
    return "\n".join(lines) + "\n"


def _reasons(done: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What could not be matched, and why."""
    for row in done:
        for name, found in row.get("recovered", {}).items():
            if found["reason"]:
                yield f"{row['network']}, {name}: {found['reason']}"
        if "unfinished" in row:
            yield f"{row['network']}: {row['unfinished']}"


def _total(rows: Sequence[Mapping[str, Any]], done: Sequence[Mapping[str, Any]]) -> str:
    seconds = sum(row["seconds"]["discover"] for row in done)
    errors = [row["verification_error"] for row in done if row["verification_error"] is not None]
    text = f"{len(done)} of {len(rows)} networks, traced and discovered in {seconds:.0f} s in all"
    return f"{text}; largest error {max(errors):.1e}." if errors else f"{text}."


def _cells(row: Mapping[str, Any]) -> list[str]:
    if "failed" in row:
        return [str(row["network"]), f"failed: {row['failed']}", *[""] * (len(_HEADS) - 2)]
    recovered = row.get("recovered", {})
    nested = f" + {row['nested']}" if row["nested"] else ""
    return [
        str(row["network"]),
        _millions(row["parameters"]),
        f"{row['groups'] - row['nested']}{nested}",
        f"{row['movable']:,}",
        _percent(row["share"]),
        f"10^{row['log10_equivalent_networks']:,.0f}",
        _small(row["verification_error"]),
        _small(row["verification_control"]),
        _percent(recovered.get("activations", {}).get("share")),
        _percent(recovered.get("weights", {}).get("share")),
        _percent(row.get("twins")),
        f"{row['seconds']['discover']:.1f}",
    ]


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"


def _percent(share: float | None) -> str:
    """A share as a percentage that is 0 or 100 only if it is exact."""
    if share is None:
        return "-"
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    return f"{min(99.9, max(0.1, math.floor(1000 * share) / 10)):.1f} %"


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_safe(cell) for cell in cells)} |"


def _safe(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _machine() -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision"))
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}"
