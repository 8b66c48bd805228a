# `make train` and `make test` do all the set-up; a second run does not install again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=
# Where it is set, each of the many programs that the tests start would compile the package's sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train demo test test-long lint docs site bench bench-long bench-peers clean

train: $(INSTALLED)
	bin/apex-train --config configs/mario-cpu.yaml $(ARGS)

demo: $(INSTALLED)
	$(BIN)/python -m benchmarks.demo build/demo $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long" $(ARGS)

test-long: $(INSTALLED)
	$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks $(ARGS)

bench-long: $(INSTALLED)
	$(BIN)/python -m benchmarks turnover $(ARGS)

# TensorFlow and Reverb pin what our own packages do not.
bench-peers: benchmarks/peers/requirements.txt
	python3.11 -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement benchmarks/peers/requirements.txt

docs: $(INSTALLED)
	$(BIN)/python -m apex_zmq.cli.config_doc > docs/CONFIGURATION.md

# The theme announces its successor at every build.
site: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; set PYTHON=python3.x"; exit 2; }
	@command -v g++ >/dev/null 2>&1 \
		|| { echo "nes-py is built from source and needs g++; install it (Debian: apt-get install g++)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# From Python 3.13 on stable-retro and nes-py ask for different versions of pyglet, which both
	@# use for windows only; without its own requirements stable-retro installs beside nes-py.
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then \
		$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt stable-retro; fi
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
