import pytest

from lmc.errors import UserError
from lmc.report.run import run_table, write_run
from lmc.results import Row


def cells(table: str, *names: str) -> list[list[str]]:
    """The numbers of every line of a table that begins with `names`."""
    lines = [line.split() for line in table.splitlines()]
    return [line[len(names) :] for line in lines if line[: len(names)] == list(names)]


def test_a_run_leaves_its_figure_and_its_table(tmp_path, make_run):
    folder = make_run(tmp_path / "run", heights=0.02, unaligned=0.8)
    report = write_run(folder)
    table = report.table
    assert report.figures == (folder / "barrier.png",)
    assert (folder / "barrier.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert b"<svg" in (folder / "barrier.svg").read_bytes()[:1000]
    # Heights 0.02 and 0.8 on train, half as much again on test; a quarter of it in accuracy. Twice: the midpoint.
    assert cells(table, "0-1", "aligned") == [["0.0200", "0.0300", "0.50", "0.75"]] * 2
    assert cells(table, "0-1", "unaligned") == [["0.8000", "1.2000", "20.00", "30.00"]] * 2
    assert cells(table, "0") == [["0.1000", "0.1000", "97.00", "97.00"]]
    assert cells(table, "1") == [["0.1100", "0.1100", "96.00", "96.00"]]
    assert cells(table, "0-1", "100.0000") == [["1.2500"]]
    assert max(len(line) for line in table.splitlines()) <= 100


def test_several_pairs_have_their_mean(tmp_path, make_run):
    heights = {(0, 1): 0.01, (0, 2): 0.02, (1, 2): 0.03}
    table = write_run(make_run(tmp_path / "run", seeds=(0, 1, 2), heights=heights)).table
    assert cells(table, "mean", "of", "3", "aligned")[0][:3] == ["0.0200", "±", "0.0100"]
    assert cells(table, "1-2", "aligned")[0][0] == "0.0300"


def test_many_pairs_are_shown_by_their_mean_alone(tmp_path, make_run):
    table = write_run(make_run(tmp_path / "run", seeds=range(5))).table
    assert cells(table, "mean", "of", "10", "aligned")
    assert not cells(table, "0-1", "aligned")


def test_the_barycentre_is_shown_where_there_is_one():
    def row(path, split, metric, value):
        return Row(
            what="barycentre", path=path, pair=(0, 1, 2), split=split, metric=metric, unit="", value=value, examples=1,
            key="k",
        )  # fmt: skip

    table = run_table([row("aligned", "train", "loss", 0.5), row("aligned", "test", "error", 0.25)])
    assert "Barycentre" in table
    assert cells(table, "aligned") == [["0.5000", "–", "–", "75.00"]]
    assert run_table([]) == ""


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"has no results\.jsonl"):
        write_run(tmp_path)


def test_a_damaged_path_is_an_error_that_names_the_line(tmp_path, make_run):
    folder = make_run(tmp_path / "run")
    path = folder / "path.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:9]) + "\naligned,0-")
    with pytest.raises(UserError, match=r"path\.csv, line 10"):
        write_run(folder)
