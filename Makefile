# Everything a contributor or the CI runs. `make demo` and `make test` do all the set-up:
# a virtual environment in .venv, made once and made again when its requirements change. It holds
# what was asked for so far: the laboratory for `make demo`, Sphinx for `make docs`, all for the tests.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
LAB := $(VENV)/.lab
DOCS := $(VENV)/.docs
READY := $(VENV)/.ready
TIMM := $(VENV)/timm
TORCH ?= --constraint constraints.txt torch

.PHONY: demo test test-timm lint format bench docs linkcheck wheels smoke clean

demo: $(LAB)  ## the main job on embedded real data, in about a minute
	$(BIN)/losslab compare --task digits --seeds 10 \
	  --loss cross_entropy --loss encouraging --loss "encouraging(log_end=1)" \
	  --loss "mixed(focus=0.3)" --loss focal

test: lint test-timm  ## everything the CI checks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-timm: $(TIMM)/.ready  ## the tests of timm, which nothing else may see
	@test ! -e $< || OMP_NUM_THREADS=1 PYTHONPATH=$(TIMM) $(BIN)/python -m pytest tests/test_timm.py

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(LAB)  ## time and memory of the losses on this machine, in about a minute
	$(BIN)/losslab bench

docs: $(DOCS)  ## the documentation as a site in build/site, with the atlas; a warning fails it
	$(BIN)/python docs/site/build.py

linkcheck: $(DOCS)  ## asks the network whether links to other sites lead somewhere
	$(BIN)/python docs/site/build.py --linkcheck build/linkcheck

wheels:  ## sdist, wheel with the C++ kernel, wheel without, in dist/; docs/release.md
	rm -rf dist build
	$(PYTHON) -m venv $(VENV)-build
	$(VENV)-build/bin/python -m pip install --upgrade pip build
	$(VENV)-build/bin/python -m build --sdist
	LOSSLAB_NATIVE=1 $(VENV)-build/bin/python -m pip wheel --no-cache-dir --no-deps --wheel-dir dist dist/losslab-*.tar.gz
	LOSSLAB_NATIVE=0 $(VENV)-build/bin/python -m pip wheel --no-cache-dir --no-deps --wheel-dir dist dist/losslab-*.tar.gz

smoke: wheels  ## both wheels in clean environments; TORCH=torch==2.4.0 for another torch
	for wheel in cp311-abi3:yes py3-none-any:no; do \
	  rm -rf $(VENV)-smoke && $(PYTHON) -m venv $(VENV)-smoke && \
	  $(VENV)-smoke/bin/python -m pip install $(TORCH) dist/losslab-*-$${wheel%%:*}*.whl && \
	  $(VENV)-smoke/bin/python tests/smoke.py --native $${wheel##*:} || exit 1; \
	done

clean:
	rm -rf $(VENV) $(VENV)-build $(VENV)-smoke build dist src/*.egg-info

$(LAB): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "losslab needs Python 3.11 or newer; '$(PYTHON)' is older or missing. Try: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[lab]"
	@touch $@

$(DOCS): $(LAB)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[docs]"
	@touch $@

$(READY): $(LAB)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[test]"
	@touch $@

# torchvision's wheel is built for CUDA: beside the CPU's PyTorch it breaks transformers, so it and
# timm lie where only their own tests look. Without them those tests skip and say so.
$(TIMM)/.ready: $(READY)
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps --upgrade --target $(TIMM) \
	  torchvision timm && touch $@ || echo "timm did not install; its tests will be skipped"
