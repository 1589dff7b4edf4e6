import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmc.inspection.command import main


def lmc_symmetry(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmc.inspection.command", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_json_holds_the_groups_the_counts_and_the_proof(folder: Path):
    done = lmc_symmetry(folder, "mine:Net", "width=6", "--input", "2,4", "--json", "--plot", "groups.svg")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # what the user's module prints is not in it
    assert "may print" in done.stderr
    (group,) = found["groups"]
    tensors = {(tensor["name"], tensor["dim"]) for tensor in group.pop("tensors")}
    assert tensors == {("first.weight", 0), ("first.bias", 0), ("last.weight", 1)}
    assert group == {"name": "first", "size": 6, "outer": [], "units": 6, "kind": "units"}
    assert found["model"] == "mine:Net"
    assert found["input"] == "(2, 4) float32"
    assert found["hidden_units"] == {"movable": 6, "fixed": 0}
    assert sum(found["fixed"].values()) == 4 + 2
    assert found["log10_equivalent_networks"] == pytest.approx(2.857332, abs=1e-6)  # log10(6!)
    assert 0 <= found["verification_error"] < 1e-9 < found["verification_control"]
    assert set(found["seconds"]) == {"build", "discover", "verify"}
    assert found["peak_memory_bytes"] > 1e7
    assert 'id="group-0"' in (folder / "groups.svg").read_text(encoding="utf-8")


def test_a_reader_that_has_seen_enough_is_no_error(folder: Path):
    code = "import sys, lmc.inspection.command as c; sys.exit(c._print('a line\\n' * 100_000))"
    command = f"'{sys.executable}' -c \"{code}\" | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a line\n", "")


def test_the_command_starts_lightly():
    heavy = ("torch", "torchvision", "numpy", "matplotlib", "pydantic", "rich", "hydra", "transformers", "timm")
    code = f"import sys, lmc.inspection.command as c; c.parser(); print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_without_running_and_without_weights(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["mine:Net", "--input", "2,4", "--meta"]) == 0
    shown = capsys.readouterr().out
    assert "no weights on the meta device" in shown
    assert "1 group; 5 of 5 hidden units move" in shown
    assert main(["mine:Net", "--input", "2,4", "--no-verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verification_error"] is None


def test_weights_are_read_and_checked(folder: Path, capsys: pytest.CaptureFixture[str]):
    from mine import Net  # type: ignore[import-not-found]

    torch.save(Net(5).state_dict(), folder / "good.pt")
    torch.save(Net(6).state_dict(), folder / "other.pt")
    assert main(["mine:Net", "--input", "2,4", "--weights", "good.pt"]) == 0
    assert main(["mine:Net", "--input", "2,4", "--weights", "other.pt"]) == 1
    assert "other.pt is of another architecture: tensor 'first.weight'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "give a NETWORK"),
        (["mlp", "--survey", "mlp", "--out", "a.md"], 2, "not both"),
        (["--survey", "mlp"], 2, "--survey needs --out"),
        (["mlp", "--out", "a.md"], 2, "--out belongs to --survey"),
        (["mlp", "width"], 2, "'width' is not NAME=VALUE"),
        (["mlp", "--input", "1,three"], 2, "'1,three' is no shape"),
        (["mlp", "--bogus"], 2, "--bogus"),
        (["mlp", "--seed", "-1"], 2, "--seed"),
        (["mpl"], 1, "lmc-symmetry: mpl is no architecture of lmc; did you mean mlp"),
        (["mlp", "width=-3"], 1, "architecture.width=-3 cannot be used"),
        (["mlp", "--plot", "a.gif"], 1, "a picture ends in"),
        (["mlp", "--weights", "none.pt"], 1, "none.pt does not exist"),
        (["--survey", "mlp", "--out", "a.txt"], 1, "ends in .md"),
        (["--survey", "mlp,,", "--out", "a.md"], 1, "a name is empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str):
    try:
        ended = main(arguments)
    except SystemExit as stopped:
        ended = int(stopped.code or 0)
    shown = capsys.readouterr()
    assert ended == status
    assert words in shown.err
    assert shown.out == ""
    if status == 1:
        assert shown.err.count("\n") == 1
