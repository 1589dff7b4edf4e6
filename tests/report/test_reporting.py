import pytest

from lmc.reporting import main


def test_the_command_prints_the_table_and_where_the_files_are(sweep, tmp_path, capsys):
    assert main([str(sweep), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "weight_matching" in shown.out
    assert str(tmp_path / "out" / "report.html") in shown.out
    assert (tmp_path / "out" / "report.tex").is_file()
    assert not (sweep / "report.md").exists()
    assert shown.err == ""


def test_one_folder_gets_its_report_and_several_the_current_one(sweep, tmp_path, make_run, monkeypatch):
    main([str(sweep)])
    assert (sweep / "report.md").is_file()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    other = make_run(tmp_path / "other" / "0", choices={"dataset": "digits", "alignment": "other"})
    assert main([str(sweep), str(other)]) == 0
    assert "| other |" in (here / "report.md").read_text()


@pytest.mark.parametrize("make", [True, False], ids=["empty folder", "no folder"])
def test_nothing_to_report_is_one_line_and_a_failure(tmp_path, capsys, make):
    folder = tmp_path / "folder"
    if make:
        folder.mkdir()
    assert main([str(folder)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lmc-report: ")
    assert str(folder) in shown.err
    assert shown.err.count("\n") == 1
