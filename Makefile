# The front door. `make help` is the menu; every command sets up what it needs first.

.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin

# Nothing is fetched behind the user's back, no usage figures are sent, and forked workers do not warn about threads.
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false
export RAY_USAGE_STATS_ENABLED ?= 0
export PYTHONUNBUFFERED ?= 1
# Threads that wait sleep: spinning on a shared machine costs five times the work (docs/decisions/0002-tiny-backbone.md).
export OMP_WAIT_POLICY ?= PASSIVE

# Container images like to set this. Each of the dozens of processes of a run would compile torch and Ray anew, twice the time.
unexport PYTHONDONTWRITEBYTECODE

# Arguments, all optional:
#   CONFIG   a config file                        make pretrain CONFIG=configs/train/anygpt-7b-pretrain.toml
#   CORPUS   a name in configs/corpora            make tokenize CORPUS=laion2b
#   CLUSTER  the address of Ray's job server      make tokenize CORPUS=laion2b CLUSTER=http://head:8265
#   DATASET  a folder of packed or sample shards  make inspect DATASET=runs/pretrain-tiny/...
#   LAUNCHER torchrun or deepspeed, for CONFIG    make pretrain CONFIG=... PROCESSES=8
#   HOSTFILE hosts of the deepspeed launcher      make pretrain CONFIG=... LAUNCHER=deepspeed HOSTFILE=hosts
#   NAME     one benchmark                        make bench NAME=packing
#   TASK     what to generate                     make generate TASK='text|image|a red circle on the left of a white background'
#   ARGS     passed on as they are                make tokenize CORPUS=mls ARGS="--set root=DIR --dry-run"
CONFIG ?=
CORPUS ?=
CLUSTER ?=
ID ?=
IDS ?=
DATASET ?=
LAUNCHER ?= torchrun
PROCESSES ?= 1
HOSTFILE ?=
NAME ?=
TASK ?=
export TASK
ARGS ?=

# A process a GPU; one process needs no launcher. The deepspeed launcher finds its own command on PATH.
launch = $(if $(filter deepspeed,$(LAUNCHER)),PATH="$(abspath $(BIN)):$$PATH" $(BIN)/deepspeed $(if $(HOSTFILE),--hostfile $(HOSTFILE),--num_gpus $(PROCESSES)) --module train.cli,$(if $(filter 1,$(PROCESSES)),$(BIN)/anygpt-train,$(BIN)/torchrun --standalone --nproc-per-node $(PROCESSES) -m train.cli))

##@ Train, from nothing to a model that draws from a sentence

.PHONY: pretrain
pretrain: setup ## the whole route on sample corpora; CONFIG=... trains a real one
	@$(if $(CONFIG),$(launch) $(CONFIG),$(BIN)/anygpt-route configs/routes/pretrain-tiny.toml) $(ARGS)

.PHONY: sft
sft: setup ## the instruction stage, from the pretrain checkpoint; CONFIG=... likewise
	@$(if $(CONFIG),$(launch) $(CONFIG),$(BIN)/anygpt-route configs/routes/sft-tiny.toml) $(ARGS)

##@ Talk to it

.PHONY: chat
chat: setup ## the chat as a page in the browser, with the model of make sft; CONFIG=... another
	@$(BIN)/anygpt-web $(or $(CONFIG),configs/inference/tiny-sft.toml) $(ARGS)

.PHONY: generate
generate: setup ## one thing from another: TASK='text|image|a red circle on the left of a white background'
	@$(call need,TASK,SOURCE|TARGET|INPUT)
	@$(BIN)/anygpt-generate $(or $(CONFIG),configs/inference/tiny.toml) "$$TASK" $(ARGS)

##@ Make data

.PHONY: synthesize
synthesize: setup ## dialogues with pictures and music, and a corpus of them: CONFIG=configs/synthesis/...
	@$(BIN)/anygpt-synthesize $(or $(CONFIG),configs/synthesis/offline.toml) $(ARGS)

.PHONY: sample-corpora
sample-corpora: setup ## render the sample corpora, in the formats of the real ones
	@$(BIN)/anygpt-sample-corpora $(or $(CONFIG),configs/sample_corpora/tiny.toml) $(ARGS)

.PHONY: tokenize
tokenize: setup ## one corpus to sample shards: CORPUS=laion2b
	@$(call need,CORPUS,$(patsubst configs/corpora/%.toml,%,$(wildcard configs/corpora/*.toml)))
	@$(if $(CLUSTER),$(BIN)/anygpt-submit --address $(CLUSTER) -- ,$(BIN)/)anygpt-tokenize configs/corpora/$(CORPUS).toml $(ARGS)

.PHONY: dedup
dedup: setup ## copies and leaked evaluation items, to a list that tokenization leaves out: CONFIG=configs/dedup/...
	@$(call need,CONFIG,$(wildcard configs/dedup/*.toml))
	@$(BIN)/anygpt-dedup $(CONFIG) $(ARGS)

.PHONY: pack
pack: setup ## sample shards to packed shards: CONFIG=configs/packing/...
	@$(call need,CONFIG,$(wildcard configs/packing/*.toml))
	@$(BIN)/anygpt-pack $(CONFIG) $(ARGS)

.PHONY: mix
mix: setup ## what a mixture comes to: shares, epochs, first repeats: CONFIG=configs/mixtures/...
	@$(call need,CONFIG,$(wildcard configs/mixtures/*.toml))
	@$(BIN)/anygpt-mix $(CONFIG) --plan $(ARGS)

.PHONY: verify
verify: setup ## prove that a dataset is whole, on all cores: DATASET=folder; ARGS=--json
	@$(call need,DATASET,the folder of a dataset)
	@$(BIN)/anygpt-verify $(DATASET) $(ARGS)

.PHONY: inspect
inspect: setup ## look into a dataset, as HTML: DATASET=folder; ARGS="--sample ID", ARGS="--pages all"
	@$(call need,DATASET,the folder of a dataset)
	@$(BIN)/anygpt-inspect $(DATASET) $(ARGS)

.PHONY: audit
audit: setup ## from a sample or packed row back to its file and licence: DATASET=folder ID=sample
	@$(call need,DATASET,the folder of a dataset)
	@$(call need,ID,the id of a sample)
	@$(BIN)/anygpt-audit $(DATASET) --id "$(ID)" $(ARGS)

.PHONY: remove
remove: setup ## take samples out for good: DATASET=folder IDS=file with an id a line
	@$(call need,DATASET,the folder of a dataset)
	@$(call need,IDS,a file with an id a line)
	@$(BIN)/anygpt-remove $(DATASET) --ids $(IDS) $(ARGS)

.PHONY: doctor
doctor: setup ## are the weights there, whole and the right ones: CONFIG=configs/tokenizers/seed2.toml
	@$(call need,CONFIG,$(filter-out %/compact.toml %/text.toml,$(wildcard configs/tokenizers/*.toml configs/vocoders/*.toml)))
	@$(BIN)/anygpt-doctor $(CONFIG) $(ARGS)

##@ Develop

.PHONY: test
test: setup ## all tests with coverage, two files at a time; ARGS="tests/shards -x" some of them, one after another
	@rm -rf .coverage
	@$(BIN)/python -m pytest $(or $(ARGS),-n 2 --dist loadfile --cov --cov-report=term:skip-covered --cov-fail-under=85)

.PHONY: chaos
chaos: setup ## 32 processes of a tokenization killed at random moments, minutes; CHAOS_KILLS=8 for fewer
	@CHAOS_KILLS=$${CHAOS_KILLS:-32} $(BIN)/python -m pytest -q tests/tokenize_jobs/test_chaos.py $(ARGS)

.PHONY: check
check: setup ## lint, format, types, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/pyright
	@$(BIN)/pyright -p tools/pyright-upper.json

.PHONY: format
format: setup ## apply the formatter and the safe fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: bench
bench: setup ## all benchmarks, or one: NAME=loader|packing|tokenize|codecs|trainer|decode
	@$(BIN)/python -m benchmarks.run $(NAME) $(ARGS)

##@ House

.PHONY: setup
setup: ## create .venv and install the lock; does nothing when nothing changed
	@$(PYTHON) tools/setup.py

.PHONY: lock
lock: setup ## resolve pyproject.toml again into requirements.lock
	@$(BIN)/python tools/lock.py

.PHONY: clean
clean: ## remove caches and coverage; keeps .venv, data/ and runs/
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
	@rm -rf .coverage .pytest_cache .ruff_cache .hypothesis .import_linter_cache build ./*.egg-info

.PHONY: help
help: ## this menu
	@bold=""; plain=""; if [ -t 1 ]; then bold=$$(printf '\033[1m'); plain=$$(printf '\033[0m'); fi; \
	awk -v bold="$$bold" -v plain="$$plain" 'BEGIN {FS = ":.*## "; print "\nusage: make <target> [NAME=value ...]"} \
	  /^##@ / {printf "\n  %s%s%s\n", bold, substr($$0, 5), plain} \
	  /^[a-z-]+:.*## / {printf "    %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo

# $(call need,NAME,what it may be): stop as wrong usage does, with exit 2, when the argument NAME was not given.
need = $(if $($(1)),:,echo "make $@: $(1)=... is missing; it may be: $(2)" >&2; exit 2)
