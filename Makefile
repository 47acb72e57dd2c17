# make demo                      pretrain on a simulated cohort, resume, evaluate, draw, export
# make demo RECORDINGS=FOLDER    the same on your own recordings
# make evaluate RECORDINGS=FOLDER   pretraining, then every baseline on the same people: an hour; EVALUATE=words of the
#                                fine-tunings; then in five folds, pretrained on other sources: five times that; FOLDS=0 without
# make questions                 what CSFM's paper leaves open, in small, on the stores of make evaluate; STEPS=500
# make test                      every test; PYTHON=python3.12 picks another interpreter
# make fuzz                      100,000 damaged files through every reader; FUZZ=--inputs=1000 for fewer
# make drill                     runs that are killed, filled up, damaged and moved: as if nothing had been
# make slurm-test                a job preempted and requeued by a real SLURM (root, slurm-wlm, munge)
# make bench                     the figures of docs/benchmarks.md
# make accelerator               step time and MFU on a GPU or TPU at hand
PYTHON ?= python3
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# PyTorch is tested on Python 3.11 only
TORCH := $(shell $(PYTHON) -c 'import sys; print("torch," if sys.version_info[:2] == (3, 11) else "")')
DEMO := runs/demo$(if $(RECORDINGS),-recordings)

export JAX_PLATFORMS ?= cpu
# Every process of a run or test would compile this package's modules for itself.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install demo evaluate questions test bench accelerator fuzz drill slurm-test lint clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip setuptools wheel
	$(PIP) --editable '.[formats]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[$(TORCH)formats,s3,gcs,beam,dev]'
	touch $@

demo: install
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/demo.sh "$(DEMO)" "$(RECORDINGS)"

evaluate: install
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/evaluate.sh runs/evaluate "$(or $(RECORDINGS),simulated)" $(EVALUATE)

questions: install
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/questions.sh runs/evaluate $(QUESTIONS_WORDS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	! git grep -nE '^(<<<<<<<|>>>>>>>) '  # a merge that was not finished

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks

accelerator: export JAX_PLATFORMS :=
accelerator: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.accelerator $(ACCELERATOR)

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m fuzz $(FUZZ)

slurm-test: $(VENV)/.installed-dev
	PYTHON="$(CURDIR)/$(BIN)/python" tests/slurm/run.sh

drill: $(VENV)/.installed-dev
	$(BIN)/python -m drill $(DRILL)

clean:
	rm -rf .venv .venv-* runs build *.egg-info
