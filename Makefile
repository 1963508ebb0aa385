# One interface for people and CI. `make` lists what there is.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
# The tested versions. For a CPU-only build take the index that PyTorch's install page shows:
#   make setup TORCH='torch torchvision --index-url ...'
STORED := $(shell cat $(VENV)/.torch 2>/dev/null)
TORCH ?= $(or $(STORED),torch==2.14.1 torchvision==0.29.1)

export PIP_DISABLE_PIP_VERSION_CHECK = 1
# pip shows its progress to people; in a log it would be hundreds of lines
PIP_SHOWS := $(shell test -t 2 && echo --progress-bar on || echo --quiet --quiet)
# What a command leaves in the temporary folder goes when the command ends.
IN_TMP := tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && trap 'exit 130' INT TERM && TMPDIR=$$tmp && export TMPDIR &&

.PHONY: help setup test test-faults soak check format demo walkthrough clean new-torch

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with everything that training, tests and checks need

test: $(READY) ## run the tests
	@$(IN_TMP) $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile

test-faults: $(READY) ## run the long tests: workers, drivers, disks and replicas die, 20,000 broken images
	@$(IN_TMP) $(BIN)/pytest -q -m faults -s

soak: $(READY) ## half an hour of mixed traffic on the service: does it fail, does its memory grow
	@$(IN_TMP) $(BIN)/python benchmarks/soak.py

check: $(READY) ## check format, lint and types
	@$(BIN)/ruff format --check --quiet . || { echo "error: badly formatted files; run 'make format'" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary

format: $(READY) ## format the code, mend what ruff can mend
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

demo: $(READY) ## train on Fashion-MNIST, report, export, embed, search, serve, measure (KEEP=1: go on serving)
	@$(IN_TMP) $(BIN)/mcbeit data prepare fashion-mnist data/fashion-mnist \
		&& $(BIN)/mcbeit train demo --resume \
		&& $(BIN)/mcbeit report runs/demo --demand \
		&& for precision in fp32 fp16 int8; do \
			$(BIN)/mcbeit export runs/demo -o runs/demo/$$precision precision=$$precision --force || exit 1; done \
		&& $(BIN)/mcbeit embed runs/demo/fp32 data/fashion-mnist/val -o runs/demo/val.npy --resume data.kind=imagefolder \
		&& $(BIN)/mcbeit index build runs/demo/val.npy -o runs/demo/index --force \
		&& query=$$(ls data/fashion-mnist/val/*/* | head -1) \
		&& $(BIN)/mcbeit index search runs/demo/index "$$query" --model runs/demo/fp32 -k 5 \
		&& $(BIN)/mcbeit viz neighbours $$(ls -d data/fashion-mnist/val/* | while read class; do ls "$$class"/* | head -1; done) \
			--model runs/demo/fp32 --index runs/demo/index -o runs/demo/pictures \
		&& $(BIN)/mcbeit bench run -t knn,logreg -m pixels -m runs/demo -m runs/demo/fp32 -m runs/demo/int8 \
			--data fashion-mnist=data/fashion-mnist --preset short -o runs/demo/bench --resume \
		&& $(BIN)/python benchmarks/served.py runs/demo/fp32 runs/demo/val.npy $(if $(KEEP),--keep) -- \
			$(BIN)/mcbeit bench run -t knn,logreg -m {address} \
			--data fashion-mnist=data/fashion-mnist --preset short -o runs/demo/bench --resume \
		&& $(BIN)/mcbeit bench report runs/demo/bench

walkthrough: $(READY) ## about an hour: pretrain on emoji, export, find one style by another; docs/walkthrough.md
	@$(IN_TMP) $(BIN)/mcbeit data prepare emoji data/emoji && $(BIN)/mcbeit data prepare photos data/photos \
		&& $(BIN)/mcbeit data prepare emoji-styles data/emoji-styles \
		&& $(BIN)/mcbeit train emoji --resume \
		&& $(BIN)/mcbeit export runs/emoji -o runs/emoji/onnx --force \
		&& $(BIN)/mcbeit train emoji run=runs/emoji/untrained optim.steps=1 optim.lr=1e-12 optim.min_lr=0 \
			eval.gallery=null eval.queries=null --resume \
		&& $(BIN)/mcbeit bench run -t retrieval -m pixels -m runs/emoji/untrained -m runs/emoji \
			-m timm:tf_efficientnet_lite0 --data emoji-styles=paired:data/emoji-styles -o runs/emoji/bench --resume \
		&& $(BIN)/mcbeit bench run -t retrieval -m runs/emoji pooling=gem \
			--data emoji-styles=paired:data/emoji-styles -o runs/emoji/bench --resume \
		&& $(BIN)/mcbeit bench report runs/emoji/bench \
		&& $(BIN)/mcbeit viz pca data/emoji-styles/val/*/1f995.png data/emoji-styles/val/*/1f4aa.png \
			--model runs/emoji/onnx -o runs/emoji/pictures \
		&& $(BIN)/mcbeit viz similarity data/emoji-styles/val/*/1f995.png --model runs/emoji/onnx -o runs/emoji/pictures

clean: ## remove .venv, caches and builds; data/ and runs/ stay
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find mcbeit serve bench cli tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# another TORCH than the one that is installed
new-torch:
	@test ! -x $(BIN)/pip || $(BIN)/python -m pip uninstall --quiet --yes torch torchvision

$(READY): pyproject.toml $(if $(STORED),$(if $(subst x$(TORCH),,x$(STORED)),new-torch))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: Python 3.11 or later is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)" >&2; \
		echo "name another one: make setup PYTHON=/path/to/python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing $(TORCH)"
	@$(IN_TMP) $(BIN)/python -m pip install $(PIP_SHOWS) $(TORCH)
	@echo '$(TORCH)' > $(VENV)/.torch
	@echo "installing mcbeit with what it needs"
	@$(IN_TMP) $(BIN)/python -m pip install $(PIP_SHOWS) --editable '.[cpu,data,dense,dev,emoji,export,lite0,ray,serve]'
	@touch $@
