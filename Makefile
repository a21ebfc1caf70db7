# Thin: each target sets up the environment if needed and calls one Python module, which explains itself with --help.
OUT    ?= artifacts
ARCHS  ?= plain34 resnet34 se_resnet34
RECIPE ?= $(if $(DATA),scratch,quick)
# As one word of the shell, whatever is in it
quoted = '$(subst ','\'',$(1))'
# Called like the photos: the folder's name, or the listing's without its suffix
NAMED  = $(shell cd $(call quoted,$(DATA)) 2>/dev/null && basename "$$PWD" || basename $(call quoted,$(basename $(DATA))))
RUN    ?= $(if $(DATA),$(NAMED),sample)
ARGS   ?=
BENCH_SECONDS ?= 180
# INT8 that loses too much is repaired, which takes minutes; the main job refuses it instead
RECOVERY ?=
PYTHON ?= python3
PY     := .venv/bin/python
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
# Which engines are installed is chosen once, by this machine's GPU (docs/gpu.md); who types others gets a fresh .venv
EXTRAS ?=
# Another package index for PyTorch: its small CPU wheels, for a laptop without a GPU (see the README)
TORCH_INDEX ?=
comma := ,
# What an empty record of earlier versions stands for
BEFORE := cpu,openvino,tensorrt-rtx
RECORD = $(or $(shell cat .venv/installed 2>/dev/null),$(if $(wildcard .venv/installed),$(BEFORE)))
ANEW  := $(if $(strip $(EXTRAS)$(TORCH_INDEX)),$(filter-out $(RECORD),$(EXTRAS) $(TORCH_INDEX)))
CHOOSE = $(shell $(PYTHON) $(NEW_ENOUGH) 2>/dev/null && $(PYTHON) runtime/nvidia.py --extras)
CHOSEN = $(eval CHOSEN := $(or $(filter-out auto,$(EXTRAS)),$(if $(ANEW),,$(firstword $(RECORD))),$(CHOOSE)))$(CHOSEN)
INDEX  = $(or $(TORCH_INDEX),$(if $(ANEW),,$(word 2,$(RECORD))),$(if $(findstring -cu12,$(CHOSEN)),https://download.pytorch.org/whl/cu126))

# Containers often forbid Python to keep its bytecode; PyTorch then takes seconds longer to start, each time
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := all
.NOTPARALLEL:
.PHONY: all setup train export bench demo test examples lint check verify mutation gpu-check readme clean help

all: BENCH_SECONDS = 10
all: RECOVERY = --no-recover
all: train export bench ## the main job: train, export, check, benchmark, choose (on drawn dishes unless DATA= is given)

setup: .venv/installed ## create .venv and install saji with everything that runs on this machine      EXTRAS= (auto: look again)

.PHONY: anew
.venv/installed: pyproject.toml constraints.txt $(if $(ANEW),anew)
	@$(PYTHON) $(NEW_ENOUGH) || { echo "saji needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version); name another: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing; install it with: sudo apt-get install -y python3-venv"; exit 2; }
	$(PYTHON) -m venv $(if $(and $(ANEW),$(wildcard .venv)),--clear ).venv
	$(if $(INDEX),PIP_EXTRA_INDEX_URL=$(INDEX)) $(PY) -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[train,tensorboard,export,$(CHOSEN),demo,dev]'$(if $(findstring tensorrt,$(subst tensorrt-rtx,,$(CHOSEN))), || { echo "TensorRT's libraries come from pypi.nvidia.com; without them: make setup EXTRAS=$(subst $() ,$(comma),$(filter-out tensorrt tensorrt-cu12,$(subst $(comma), ,$(CHOSEN))))"; exit 2; })
	@echo '$(strip $(CHOSEN) $(INDEX))' > $@

train: .venv/installed ## photos -> checkpoints      DATA= ARCHS= RECIPE= RUN= ARGS=
	$(PY) -m training --recipe $(RECIPE) $(if $(DATA),--data $(call quoted,$(DATA))) --run $(call quoted,$(RUN)) --out $(call quoted,$(OUT)) --archs $(ARCHS) $(ARGS)

export: .venv/installed ## checkpoints -> checked ONNX, PyTorch and TensorRT files      ARCHS= RUN= ARGS=
	$(PY) -m export --run $(call quoted,$(RUN)) --out $(call quoted,$(OUT)) --archs $(ARCHS) $(RECOVERY) $(ARGS)

bench: .venv/installed ## time all candidates, choose what is served      ARCHS= BENCH_SECONDS= ARGS=
	$(PY) runtime/bench.py --out $(call quoted,$(OUT)) --archs $(ARCHS) --seconds $(BENCH_SECONDS) $(ARGS)

demo: .venv/installed ## open the page that serves the choice      ARGS=
	$(PY) demo/app.py --out $(call quoted,$(OUT)) $(ARGS)

test: .venv/installed ## the fast tests      ARGS=
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

examples: ## fetch the packages of the embedding examples, whose tests are skipped without them
	@command -v npm >/dev/null || { echo "npm is missing; install it with: sudo apt-get install -y nodejs npm"; exit 2; }
	@for example in node browser; do npm install --prefix demo/embed/$$example --ignore-scripts --no-package-lock --no-audit --no-fund || exit 2; done

lint: .venv/installed ## style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

check: lint test ## lint, types and the fast tests

verify: .venv/installed ## the long tests      ARGS=
	$(PY) -m pytest -m slow $(ARGS)

mutation: .venv/installed ## do the tests notice wrong lines? hours, resumable      ARGS=runtime/choice.py
	@$(PY) -c 'import cosmic_ray' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check -e '.[mutation]'
	$(PY) -m lab mutation $(ARGS)

gpu-check: ## what only an NVIDIA GPU can settle, in ten minutes; installs nothing      ARGS=
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m lab gpu-check $(ARGS)

readme: .venv/installed ## generate all tables and figures anew from the committed rows
	$(PY) -m lab tables README.md CONTRIBUTING.md docs/*.md

clean: ## remove caches; artifacts/ and .venv/ stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache dist build $(call quoted,$(OUT)/cache)
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	@echo "kept: $(OUT)/ (trained models) and .venv/; remove them by hand when you mean it: rm -r $(OUT) .venv"

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
