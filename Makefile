# `make help` lists the targets. The first of them that needs Python makes the virtual environment .venv.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3# of at least 3.11; used once, to make .venv
PROFILE ?=# small or paper; empty: paper where there is a GPU, else small
DATASET ?= cifar10,cifar100# or one of them, or digits
SEEDS ?= 0
VARIANTS ?= hcnn,hcnn-plus
MAX_SECONDS ?= 3600
ACCURACY ?= sample# of stored networks on 500 test images; full: on whole test sets
K ?=
Q ?=

comma := ,
DATASETS = $(subst $(comma), ,$(DATASET))
PY := .venv/bin/python
ENVIRONMENT := .venv/.installed
# Evaluated in a recipe, when the environment exists: torch knows whether there is a GPU.
FIND_PROFILE = $(or $(PROFILE),$$($(PY) -c "import torch; print('paper' if torch.cuda.is_available() else 'small')"))

.PHONY: help environment data reproduce figures sweep headline test test-full pytest nbval verify lab clean

help: ## list the targets
	@echo "make TARGET [PROFILE=small|paper] [DATASET=cifar10,cifar100|cifar10|cifar100|digits]"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1 \t\2/p' Makefile | expand -t 16

$(ENVIRONMENT): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@rm -f $@
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --editable '.[reproduce]'
	@touch $@

environment: $(ENVIRONMENT) ## make .venv with the pinned versions (about 6 GB)

data: $(ENVIRONMENT) ## download CIFAR-10 and CIFAR-100 into data/ or verify what is there
	@status=0; for dataset in $(DATASETS); do $(PY) -m hcnn data $$dataset || status=1; done; exit $$status

reproduce: $(ENVIRONMENT) ## run every notebook, train both variants, print paper beside here
	@$(MAKE) --no-print-directory data || echo "Going on: every notebook says on which data it trains."
	@profile=$(FIND_PROFILE); echo "PROFILE=$$profile DATASET=$(DATASET)"; \
	$(PY) notebooks/execute.py --all --profile $$profile --dataset $(DATASET)

figures: $(ENVIRONMENT) ## tables and figures from the stored runs only (notebook 05)
	@$(PY) notebooks/execute.py 05

sweep: $(ENVIRONMENT) ## train a grid of sizes (notebook 03): make sweep K=8,16 Q=9,16,32
	@$(if $(K)$(Q),,echo "Which sizes? make sweep K=8,16 Q=9,16,32"; exit 2)
	@$(PY) notebooks/execute.py 03 --profile $(FIND_PROFILE) --sweep $(if $(K),K=$(K)) $(if $(Q),Q=$(Q))

headline: $(ENVIRONMENT) ## the paper's full trainings, resumed where they stopped: SEEDS=0,1 VARIANTS=hcnn MAX_SECONDS=3600
	@end=$$((SECONDS + $(MAX_SECONDS))); child=; \
	trap 'kill -TERM $$child 2>/dev/null && wait $$child; exit 130' INT TERM; \
	for seed in $(subst $(comma), ,$(SEEDS)); do \
	  for dataset in $(DATASETS); do \
	    for variant in $(subst $(comma), ,$(VARIANTS)); do \
	      left=$$((end - SECONDS)); \
	      if [ $$left -le 0 ]; then echo "MAX_SECONDS=$(MAX_SECONDS) are over; the same command goes on from here."; exit 0; fi; \
	      $(PY) -m hcnn train --dataset $$dataset --variant $$variant --seed $$seed --max-seconds $$left & child=$$!; \
	      wait $$child; \
	    done; \
	  done; \
	done

test: pytest nbval ## every test, and every notebook with nbval

pytest: $(ENVIRONMENT) ## the tests only
	$(PY) -m pytest --quiet

test-full: $(ENVIRONMENT) ## the tests with the exhaustive ones
	$(PY) -m pytest --quiet --full

nbval: $(ENVIRONMENT) ## the notebooks only: run each with its defaults, compare the checked outputs, leave results/ alone
	@mkdir -p results/runs; copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; cp -r results/runs "$$copy"; \
	HCNN_RESULTS="$$copy" $(PY) -m pytest --quiet --nbval-lax --nbval-current-env notebooks

verify: $(ENVIRONMENT) ## recompute tables, README and stored accuracies from results/runs: make verify ACCURACY=full
	@$(PY) -m hcnn verify --accuracy $(ACCURACY)

lab: $(ENVIRONMENT) ## open the notebooks in JupyterLab
	.venv/bin/jupyter lab notebooks

clean: ## remove what reproduce made and git does not know; keeps data, .venv and trainings on the full set
	git clean -dfxq results/notebooks results/tables results/figures
	@for run in results/runs/*/; do \
	  if [ -z "$$(git ls-files "$$run")" ] && grep -qsaE 'train_size\\*": ?[0-9]' "$$run"run.json "$$run"checkpoint.safetensors; \
	  then echo "rm -r $$run"; rm -r "$$run"; fi; \
	done
