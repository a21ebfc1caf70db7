# Thin: each target sets up the environment if needed and calls one Python module, which explains itself with --help.
# Names may hold spaces and signs, so they reach the shell as they were typed, in quotes: $(call typed,DATA)
quoted = '$(subst ','\'',$(1))'
typed  = $(call quoted,$(value $(1)))
OUT    ?= artifacts
# Make would expand them on their way into the environment, since 4.4 into that of $(shell), too: the name of a folder
# must not be run
unexport DATA OUT RUN RECIPE
# What a recipe is for: two networks for the first minutes, the one with weights, the comparison that saji grew from
ARCHS  ?= $(if $(filter quick,$(BY)),resnet18 resnet34,$(if $(filter transfer,$(BY)),efficientnet_lite0,plain34 resnet34 se_resnet34))
RECIPE ?=
BY     = $(or $(value RECIPE),$(if $(value DATA),scratch,quick))
NETWORKS = $(subst $(comma), ,$(ARCHS))
# A run is named after its photos, wherever one stands, as training.photos.dataset.run_name does it
STEM   := -c 'import pathlib, sys; path = pathlib.Path(sys.argv[1]).resolve(); print(path.name if path.is_dir() else path.stem)'
NAMED  = $(or $(value RUN),$(if $(value DATA),$(or $(shell $(PYTHON) $(STEM) $(call typed,DATA)),photos),sample))
ARGS   ?=
BENCH_SECONDS ?= 180
# INT8 that loses too much is repaired, which takes minutes; the main job refuses it instead. Nor does it time starts
RECOVERY ?=
COLD ?=
PYTHON ?= python3
PY     := .venv/bin/python
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
comma := ,
# Which engines are installed is chosen once, by this machine's GPU (docs/gpu.md); who types others gets a fresh .venv.
# They are a set: in any order, with commas or blanks
EXTRAS ?=
as_set  = $(subst $() ,$(comma),$(sort $(subst $(comma), ,$(1))))
override EXTRAS := $(call as_set,$(EXTRAS))
# Another package index for PyTorch: its small CPU wheels, for a laptop without a GPU (docs/gpu.md)
TORCH_INDEX ?=
# What an empty record of earlier versions stands for
BEFORE := cpu,openvino,tensorrt-rtx
RECORDED := $(or $(shell cat .venv/installed 2>/dev/null),$(if $(wildcard .venv/installed),$(BEFORE)))
RECORD := $(call as_set,$(firstword $(RECORDED))) $(word 2,$(RECORDED))
ANEW  := $(if $(strip $(EXTRAS)$(TORCH_INDEX)),$(filter-out $(RECORD),$(EXTRAS) $(TORCH_INDEX)))
CHOOSE = $(shell $(PYTHON) $(NEW_ENOUGH) 2>/dev/null && $(PYTHON) runtime/nvidia.py --extras)
CHOSEN = $(eval CHOSEN := $(or $(filter-out auto,$(EXTRAS)),$(if $(ANEW),,$(firstword $(RECORD))),$(CHOOSE)))$(CHOSEN)
INDEX  = $(or $(TORCH_INDEX),$(if $(ANEW),,$(word 2,$(RECORD))),$(if $(findstring -cu12,$(CHOSEN)),https://download.pytorch.org/whl/cu126))

# What is undone at the end must not be interrupted: make sends the signal a second time to a shell that has it already
DEAF    = trap "" INT TERM HUP

# Behind a command: on a terminal, what pip is at, on one line; Ctrl-C ends pip, too
WATCHED = & pip=$$!; trap '$(DEAF); kill $$pip; wait $$pip; exit 130' INT TERM HUP; while [ -t 2 ] && kill -0 $$pip 2>/dev/null; do printf '\r\033[K%.78s' "$$(grep -v ^WARNING .venv/setup.log | tail -n 1)" >&2; sleep 1; done; [ ! -t 2 ] || printf '\r\033[K' >&2; wait $$pip

# Ahead of a fresh .venv: the complete one before (a link's or a mount's is cleared in place) comes back, with what pip said,
# unless the fresh one is complete at the end; where a kill left neither undone, the next setup does it
KEEPING = [ ! -f .venv/installed ] || [ -L .venv ] || { rm -rf .venv.before; mv .venv .venv.before 2>/dev/null || :; }
BACK    = [ ! -d .venv.before ] || if [ -s .venv/installed ]; then rm -rf .venv.before; else mv -f .venv/setup.log .venv.before 2>/dev/null; rm -rf .venv && mv .venv.before .venv && echo "the .venv that was there before is kept" >&2; fi

# Containers often forbid Python to keep its bytecode; PyTorch then takes seconds longer to start, each time
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := all
.NOTPARALLEL:
.PHONY: all setup train export bench demo scale test examples lint check verify mutation torture supply gpu-check readme clean help

all: BENCH_SECONDS = 10
all: RECOVERY = --no-recover
all: COLD = --cold-starts 0
all: train export bench ## the main job: train, export, check, benchmark, choose      DATA= (else drawn dishes)

setup: .venv/installed ## create .venv, install saji and all that runs on this machine      EXTRAS= (auto: look again)

.PHONY: anew
.venv/installed: pyproject.toml constraints.txt $(if $(ANEW),anew)
	@$(PYTHON) $(NEW_ENOUGH) || { echo "saji needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version); name another: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing; install it with: sudo apt-get install -y python3-venv"; exit 2; }
	@$(PYTHON) runtime/nvidia.py --check $(call quoted,$(CHOSEN))
	@printf '\n== Setup: saji with %s into .venv\n' '$(CHOSEN)' >&2
	@trap '$(DEAF); $(BACK)' EXIT; trap '$(DEAF); exit 130' INT TERM HUP; $(if $(ANEW),$(KEEPING); )\
	$(PYTHON) -m venv $(if $(and $(ANEW),$(wildcard .venv)),--clear ).venv || exit 2; \
	$(if $(INDEX),PIP_EXTRA_INDEX_URL=$(INDEX)) $(PY) -m pip install --no-compile --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[train,tensorboard,export,$(CHOSEN),demo,heic,dev]' > .venv/setup.log 2>&1 $(WATCHED) || { tail -n 5 .venv/setup.log; echo "that was the end of .venv/setup.log"; ! grep -qF 'No space left' .venv/setup.log || echo "the disk is full: .venv takes 7 GB, and what pip fetches lies in /tmp meanwhile; for another folder: make setup TMPDIR=FOLDER"; $(if $(findstring tensorrt,$(subst tensorrt-rtx,,$(CHOSEN))),echo "TensorRT's libraries come from pypi.nvidia.com; without them: make setup EXTRAS=$(subst $() ,$(comma),$(filter-out tensorrt tensorrt-cu12,$(subst $(comma), ,$(CHOSEN))))";) exit 2; }; \
	echo '$(strip $(CHOSEN) $(INDEX))' > $@

train: .venv/installed ## photos -> checkpoints      DATA= ARCHS= RECIPE= RUN= ARGS=
	@$(PY) -m training --recipe $(call quoted,$(BY)) $(if $(value DATA),--data $(call typed,DATA)) --run $(call quoted,$(NAMED)) --out $(call typed,OUT) --archs $(NETWORKS) $(ARGS)

export: .venv/installed ## checkpoints -> checked ONNX, PyTorch and TensorRT files      ARCHS= RUN= ARGS=
	@$(PY) -m export --run $(call quoted,$(NAMED)) --out $(call typed,OUT) --archs $(NETWORKS) $(RECOVERY) $(ARGS)

bench: .venv/installed ## time all candidates, choose what is served      ARCHS= BENCH_SECONDS= ARGS=
	@$(PY) runtime/bench.py --out $(call typed,OUT) --archs $(NETWORKS) --seconds $(BENCH_SECONDS) $(COLD) $(ARGS)

demo: .venv/installed ## open the page that serves the choice      ARGS=
	$(PY) demo/app.py --serve auto --out $(call typed,OUT) $(ARGS)

scale: .venv/installed ## the same as a fleet on Ray, here or on a cluster      ARGS=
	@$(PY) -c 'import ray' 2>/dev/null || $(PY) -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[scale]'
	$(PY) -m demo.scale --serve auto --out $(call typed,OUT) $(ARGS)

test: .venv/installed ## the fast tests      ARGS=
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

examples: ## fetch the packages of the embedding examples, for their tests
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
	@$(PY) -c 'import cosmic_ray, coverage' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check -e '.[mutation]'
	$(PY) -m lab mutation $(ARGS)

torture: .venv/installed ## thousands of seeded attempts to break it, resumable      ARGS=pictures
	@$(PY) -c 'import atheris' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check -e '.[torture]' || echo 'atheris cannot be installed here; the parsers are fed unguided'
	@$(PY) -m lab torture $(ARGS)

supply: .venv/installed ## what serving installs: hashes, licences, known weaknesses      ARGS=--lock
	@$(PY) -c 'import cyclonedx_py, piplicenses, pip_audit' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check -e '.[supply]'
	@$(PY) -m lab supply $(ARGS)

gpu-check: ## what only an NVIDIA GPU can settle, in ten minutes      ARGS=
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m lab gpu-check $(ARGS)

readme: .venv/installed ## generate all tables and figures anew from the committed rows
	$(PY) -m lab tables README.md CONTRIBUTING.md docs/*.md

clean: ## remove caches; artifacts/ and .venv/ stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache dist build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	@printf 'kept: %s/ (trained models) and .venv/; to remove them, too: rm -r %s .venv\n' $(call typed,OUT) $(call quoted,$(call typed,OUT))

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { split($$2, part, "      "); wide = length($$2) > 60; printf "make %-9s %s%s%s\n", $$1, part[1], !part[2] ? "" : wide ? "\n               " : "   ", part[2] }' $(MAKEFILE_LIST)
