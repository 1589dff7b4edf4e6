"""A table of raw numbers that a killed process goes on from."""

import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path as FilePath

Key = tuple[str | int | float, ...]
"""The first columns of a row: what its numbers are of."""


def resumed(
    file: FilePath,
    columns: Sequence[str],
    steps: Sequence[Sequence[Key]],
    compute: Callable[[int], Sequence[Sequence[float | int]]],
) -> Iterator[list[list[float]]]:
    """Yield the numbers of every step: those that are in `file`, as far as it is whole, then those that are computed.

    A row is written once its step is done; a killed process loses no step that was done. Whatever is in the file behind
    the last whole step, or of other steps, is thrown away.

    Args:
        file: a CSV file, written in full precision; there or not.
        columns: its header.
        steps: for each step the keys of its rows.
        compute: given the number of a step, returns the numbers of its rows, behind the keys.

    Yields:
        For each step, for each of its rows, the numbers behind the key.
    """
    rows = _stored(file, len(columns), steps)
    beginning = file.with_name(f"{file.name}.new")
    with beginning.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([columns, *itertools.chain.from_iterable(rows)])
    beginning.replace(file)
    with file.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        for number, keys in enumerate(steps):
            if number < len(rows):
                yield [[float(value) for value in row[len(keys[0]) :]] for row in rows[number]]
                continue
            values = compute(number)
            writer.writerows([(*key, *of) for key, of in zip(keys, values, strict=True)])
            stream.flush()
            yield [[float(value) for value in of] for of in values]


def _stored(file: FilePath, width: int, steps: Sequence[Sequence[Key]]) -> list[list[list[str]]]:
    """The rows of the first steps that are whole and where they should be, as text; none if there is no file."""
    if not file.is_file():
        return []
    *lines, _ = file.read_text(encoding="utf-8", errors="replace").split("\n")  # the last line may be a half one
    entries = csv.reader(line.replace("\0", "") for line in lines[1:])
    found = []
    for keys in steps:
        rows = list(itertools.islice(entries, len(keys)))
        if len(rows) < len(keys) or not all(_is(row, key, width) for row, key in zip(rows, keys, strict=True)):
            break
        found.append(rows)
    return found


def _is(row: Sequence[str], key: Key, width: int) -> bool:
    """Whether a row has this key, and numbers behind it."""
    if len(row) != width or list(row[: len(key)]) != [str(part) for part in key]:
        return False
    try:
        _ = [float(value) for value in row[len(key) :]]
    except ValueError:
        return False
    return True
