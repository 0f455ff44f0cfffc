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
FURTHER ?=# not empty: after the headline trainings the rest of hcnn/companion/experiments.py
PRESET ?=# of headline; short: the trainings of the table "Trained here, on a CPU"
ACCURACY ?= sample# of stored networks on 500 test images; full: on whole test sets
# of sweeps and ablations; empty: the profile's
K ?=
Q ?=
EPOCHS ?=
TRAIN_SIZE ?=
PADDING_MODE ?=
SPLIT ?=
WORKERS ?=# trainings at a time; empty: one a GPU, or one a core; test files at a time; empty: two

comma := ,
DATASETS = $(foreach name,$(subst $(comma), ,$(DATASET)),$(or $(filter cifar10 cifar100 digits,$(name)),\
$(error DATASET must be of cifar10,cifar100,digits, got $(name))))
# $(call given,SEEDS,--seeds): an option with its values, where make was told of them
given = $(if $(filter-out file,$(origin $1)),$(if $($1),$2 $(subst $(comma), ,$($1))))
PY := .venv/bin/python
# Files side by side, each process with one thread: more of them would wait actively for each other.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest --quiet -n $(or $(WORKERS),2) --dist loadfile
ENVIRONMENT := .venv/.installed
# Evaluated in a recipe, when the environment exists: torch knows whether there is a GPU.
FIND_PROFILE = $(or $(PROFILE),$$($(PY) -c "import torch; print('paper' if torch.cuda.is_available() else 'small')"))

.PHONY: help environment data reproduce figures sweep ablations headline speed test test-full pytest nbval verify lab site clean

help: ## list the targets
	@echo "make TARGET [PROFILE=small|paper] [DATASET=cifar10,cifar100|cifar10|cifar100|digits]"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1 \t\2/p' Makefile | expand -t 16

$(ENVIRONMENT): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@rm -f $@
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --require-hashes -r requirements.lock || \
	{ echo "The locked files are not to be had here: the versions of pyproject.toml instead."; \
	$(PY) -m pip install --quiet '.[reproduce]'; }
	$(PY) -m pip install --quiet --no-deps --editable .
	@touch $@

environment: $(ENVIRONMENT) ## make .venv with the pinned versions (about 6 GB)

data: $(ENVIRONMENT) ## download CIFAR-10 and CIFAR-100 into data/ or verify what is there
	@status=0; for dataset in $(DATASETS); do $(PY) -m hcnn data $$dataset || status=1; done; exit $$status

reproduce: $(ENVIRONMENT) ## evaluate the stored networks, run every notebook, print paper, stored and just now
	@$(MAKE) --no-print-directory data || echo "Going on: every notebook says on which data it trains."
	@set -e; profile=$(FIND_PROFILE); echo "PROFILE=$$profile on $(DATASETS)"; $(PY) -m hcnn evaluate; \
	$(PY) notebooks/execute.py --all --profile $$profile --dataset $(DATASET); $(PY) -m hcnn tables --local

figures: $(ENVIRONMENT) ## tables, README and figures from the stored runs only (notebook 05)
	@$(PY) -m hcnn tables
	@$(PY) notebooks/execute.py 05 --out results

sweep ablations: DATASET = cifar10
sweep ablations: VARIANTS = hcnn
sweep ablations speed: MAX_SECONDS =

sweep: $(ENVIRONMENT) ## train a grid of sizes side by side: make sweep K=8,16 Q=9,16,32 VARIANTS=hcnn,hcnn-plus SEEDS=0,1
	@$(if $(K)$(Q),,echo "Which sizes? make sweep K=8,16 Q=9,16,32"; exit 2)
	@exec $(PY) notebooks/execute.py --profile $(FIND_PROFILE) $(if $(WORKERS),--workers $(WORKERS)) \
	$(if $(EPOCHS),-p epochs $(EPOCHS)) $(if $(TRAIN_SIZE),-p train_size $(TRAIN_SIZE)) $(if $(SPLIT),-p split $(SPLIT)) \
	$(if $(MAX_SECONDS),-p max_seconds $(MAX_SECONDS)) --sweep dataset=$(DATASET) variant=$(VARIANTS) seed=$(SEEDS) \
	$(if $(PADDING_MODE),padding_mode=$(PADDING_MODE)) $(if $(K),K=$(K)) $(if $(Q),Q=$(Q))

ablations: $(ENVIRONMENT) ## train a network and all that differs from it in one choice, on held-out images: SEEDS=0,1
	@[ $(FIND_PROFILE) = small ] || set -- --preset paper; \
	exec $(PY) -m hcnn ablations --dataset $(DATASET) --seeds $(subst $(comma), ,$(SEEDS)) "$$@" \
	$(if $(filter-out hcnn,$(VARIANTS)),--variant $(VARIANTS)) $(if $(K),--K $(K)) $(if $(Q),--Q $(Q)) \
	$(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(TRAIN_SIZE),--train-size $(TRAIN_SIZE)) \
	$(if $(PADDING_MODE),--padding-mode $(PADDING_MODE)) $(if $(MAX_SECONDS),--max-seconds $(MAX_SECONDS)) \
	$(if $(WORKERS),--workers $(WORKERS))

headline: $(ENVIRONMENT) ## the full trainings, resumed where they stopped: SEEDS=0,1 VARIANTS=hcnn FURTHER=1 MAX_SECONDS=3600, or PRESET=short
	@exec $(PY) -m hcnn headline $(if $(PRESET),--preset $(PRESET)) $(call given,DATASET,--datasets) \
	$(call given,VARIANTS,--variants) $(call given,SEEDS,--seeds) $(if $(WORKERS),--workers $(WORKERS)) \
	$(if $(MAX_SECONDS),--max-seconds $(MAX_SECONDS)) $(if $(FURTHER),--further)

speed: $(ENVIRONMENT) ## time training steps beside the literal implementation: results/tables/speed.csv, MAX_SECONDS=500
	@$(PY) -m hcnn speed $(if $(MAX_SECONDS),--max-seconds $(MAX_SECONDS))

test: pytest nbval ## every test, and every notebook with nbval

pytest: $(ENVIRONMENT) ## the tests only
	$(PYTEST)

test-full: $(ENVIRONMENT) ## the exhaustive tests, which `make test` skips
	$(PYTEST) --full -m full

nbval: $(ENVIRONMENT) ## the notebooks only: run each with its defaults, compare the checked outputs, leave results/ alone
	@set -e; mkdir -p results/runs; copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; cp -r results/runs "$$copy"; \
	HCNN_RESULTS="$$copy" $(PYTEST) --nbval-lax --nbval-current-env notebooks

verify: $(ENVIRONMENT) ## write tables and README again and compare, evaluate the stored networks: make verify ACCURACY=full
	@$(PY) -m hcnn verify --accuracy $(ACCURACY)

lab: $(ENVIRONMENT) ## open the notebooks in JupyterLab
	.venv/bin/jupyter lab notebooks

site: .venv/.site ## build the documentation in site/_build/html: notebooks, explorer, results, claims, API
	$(PY) -m sphinx -W --keep-going --nitpicky --quiet -d site/_build/doctrees site site/_build/html

.venv/.site: $(ENVIRONMENT)
	$(PY) -m pip install --quiet --editable '.[site]'
	@touch $@

clean: ## remove what reproduce made, results/local, and what else git does not know in results; keeps data, .venv and results/runs
	rm -rf results/local
	git clean -dfxq results/notebooks results/tables results/figures
