# `make sweep` and `make test` each do all of their own set-up; the second time is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTS_READY := $(VENV)/.tests-ready
# Two workers: the suite is made for two cores, each torch process keeps to one thread.
TEST_WORKERS ?= 2

.PHONY: sweep test test-slow check clean

sweep: $(READY)
	$(BIN)/archsearch sweep search_spaces/quickstart.yaml --out results/quickstart

test: $(TESTS_READY)
	$(BIN)/python -m pytest -n $(TEST_WORKERS)

test-slow: $(TESTS_READY)
	$(BIN)/python -m pytest -m slow --timeout=3600

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,hf]' -c constraints.txt
	@touch $(READY)

# Triton, which interprets the package's kernels on a CPU: 285 MB that a sweep has no use for, and Linux alone has.
$(TESTS_READY): $(READY)
ifeq ($(shell uname -s),Linux)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[kernels-test]' -c constraints.txt
endif
	@touch $(TESTS_READY)

clean:
	rm -rf $(VENV)
