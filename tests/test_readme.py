"""The README's own text is run; what it lists is what there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

MINE = """
import torch
from torch import nn
from sklearn.datasets import load_digits


class Net(nn.Module):
    def __init__(self, *, input_shape=(1, 8, 8), classes=10, width: int = 32):
        super().__init__()
        self.enter = nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], width)
        self.block, self.leave = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, x):
        x = torch.relu(self.enter(x.flatten(1)))
        return self.leave(x + torch.relu(self.block(x)))


digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
batches = [(images[i : i + 300], torch.tensor(digits.target[i : i + 300])) for i in range(0, 1797, 300)]
"""


def block(name: str) -> str:
    """The fenced block behind the comment <!-- test: name -->."""
    found = re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found
    return found.group(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: a module with a network and data, and two checkpoints trained apart."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    scope: dict[str, object] = {}
    exec(MINE, scope)
    for name, seed in (("a.pt", 0), ("b.pt", 1)):
        with torch.random.fork_rng():
            torch.random.default_generator.manual_seed(seed)
            model = scope["Net"]()  # type: ignore[operator]
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(10):
            for inputs, labels in scope["batches"]:  # type: ignore[attr-defined]
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
        torch.save(model.state_dict(), tmp_path / name)
    return tmp_path


def test_the_library_example_runs_as_it_stands(folder: Path):
    text = block("library")
    assert len([line for line in text.splitlines() if line.strip()]) < 15
    command = [sys.executable, "-W", "error", "-c", text]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    units, before, after = re.fullmatch(r"(\d+) hidden units; barrier (\S+) -> (\S+) nats\n", done.stdout).groups()
    assert units == "32"  # the block writes into the stream, so its units move with it
    assert float(after) < float(before) / 2


def test_an_own_architecture_goes_through_the_pipeline(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = folder / "my_conf" / "architecture" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(block("own architecture"), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", ".")
    command = [sys.executable, "-m", "lmc.app", "--config-dir", "my_conf", "architecture=mine", "budget=smoke"]
    own = ["endpoints=checkpoint", "endpoints.files=[a.pt,b.pt]", "tracker.mode=disabled"]
    done = subprocess.run([*command, *own], cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "32 hidden units in 1 group " in done.stdout


def test_an_own_alignment_method_is_one_module_and_one_file(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "my_method.py").write_text(block("own alignment"), encoding="utf-8")
    path = folder / "my_conf" / "alignment" / "my_method.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("_target_: my_method.RandomPermutation\ndraw: 3\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", ".")
    command = [sys.executable, "-m", "lmc.app", "--config-dir", "my_conf", "alignment=my_method", "budget=smoke"]
    done = subprocess.run([*command, "tracker.mode=disabled"], cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Barrier" in done.stdout


WITHOUT_THE_RULE = """
try:
    test_distances()
except AssertionError:
    pass
else:
    raise SystemExit("the test passes without the rule")
"""


def test_an_own_symmetry_rule_is_one_function_and_one_test():
    text = (
        "import torch\n" + block("test of the own rule") + WITHOUT_THE_RULE + block("own rule") + "\ntest_distances()\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "no symmetry rule for aten.cdist.default" in done.stderr


def test_every_option_is_listed():
    listed = set(re.findall(r"`(\w+)`", README.split("| group | options |")[1].split("\n\n")[0]))
    present = {path.stem for path in (ROOT / "conf").glob("*/*.yaml")}
    present |= {path.stem for path in (ROOT / "conf" / "training" / "schedule").glob("*.yaml")}
    assert present <= listed, present - listed


def test_pictures_and_files_that_are_named_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
