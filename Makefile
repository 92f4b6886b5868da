# demo and test make their own environment first; nothing else is needed than Python 3.11+, make and a C compiler.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check bench weights clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: install
	$(BIN)/spinset demo

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

bench: install
	for benchmark in benchmarks/*.py; do $(BIN)/python $$benchmark || exit 1; done

# The embedded models of filters/embedded, from nothing: about an hour on two cores.
weights: install
	$(BIN)/spinset generate out/people --identities 1024 --seed 10000000 --rig scatter-16 --resolution 160 \
		--mesh.resolution 64 --defect-rate 0.15 --defects janus floater hole haze truncated
	$(BIN)/python -m filters.embedded.train_clip out/people
	$(BIN)/python -m filters.embedded.train_arcface out/people

clean:
	rm -rf .venv
