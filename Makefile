# make run    set up .venv from the pinned constraints and run the default experiment (ARGS="dataset=mnist ..." for another)
# make test   set up .venv and run all checks: ruff, mypy, pytest
# make bench  run the benchmarks: a ratio for each claim of speed
PY   ?= python3
VENV ?= .venv
BIN  := $(VENV)/bin
ARGS ?=
READY := $(VENV)/.ready

.PHONY: run test check bench constraints clean

run: $(READY)
	$(BIN)/lmc $(ARGS)

test: check
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m pytest tests/benchmarks -s

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "uv>=0.9"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt --editable ".[dev]"
	touch $@

constraints: $(READY)
	$(BIN)/python .ci/constraints

clean:
	rm -rf $(VENV)
