# `make demo` and `make test` need Python 3.11 or newer with pip and venv, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALLED_FROM := constraints.txt pyproject.toml setup.py kernels/pyproject.toml kernels/setup.py \
	$(wildcard csrc/*.cpp csrc/*.h csrc/*.py)

PYDOCLINT := $(VENV)/pydoclint/bin/pydoclint

# The site's tools; scikit-learn is for an example that the tests of the tree do without.
DOCS := $(VENV)/docs/bin
DOCS_TOOLS := furo myst-parser scikit-learn sphinx
# Its python, with this tree and the packages of the other environment before its own.
IN_DOCS = PYTHONPATH=.:kernels:$$($(BIN)/python -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])') $(DOCS)/python

AUDIT := $(VENV)/audit/bin
LOCK := $(AUDIT)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras -c constraints.txt \
	--no-annotate --no-header --no-emit-index-url --no-emit-find-links --output-file

# The rehearsal has an environment of its own: a CUDA build of torch, of about six gigabytes, which runs
# on a driver without a card (tests/null_gpu/README.md).
CUDA_VENV ?= .venv-cuda
CUDA_BIN := $(CUDA_VENV)/bin
CUDA_STAMP := $(CUDA_VENV)/.installed
CUDA_PINS := $(CUDA_VENV)/constraints.txt
REHEARSED := cattrs matplotlib numpy packaging pytest pytest-benchmark pytest-timeout pyyaml rich safetensors tyro

# Of the page of a report.
THREE := 0.187.0
ESBUILD := 0.28.2

# How many SIGKILLs `make torture` sends.
KILLS ?= 1000
# Where `make torture` writes its table; empty for no record.
RECORD ?= --out benchmarks/results/cpu-2-cores/torture.json --document docs/reliability.md

# Raw data of the small sets, a folder for each.
DATA ?= ../shared/data

# What `make rehearse` runs.
REHEARSE := tests/null_gpu

# Changed files of every kind, and how many of each: make fuzz INPUTS=1000 FUZZ_FLAGS="--seed 1"
INPUTS ?= 5000

.PHONY: env demo test test-all torture guards fuzz bench lint pydoclint docs pictures audit lock cuda rehearse speedrun three hub clean

env: $(STAMP)

$(STAMP): $(INSTALLED_FROM)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "PYTHON=$(PYTHON): Python 3.11 or newer is needed; name one with make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ./kernels -e ".[dev]"
	touch $@

demo: env
	$(BIN)/python -m sjepa_fast.train --compile $(DEMO_FLAGS)

# Each process computes with one thread and takes up to 2 GB. A file stays in one process, for what
# its tests share; the order is that of the tree, where the longest file comes early.
test: env
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# With every case of the interpreted kernels, of which `make test` has a quarter where there are many, and
# each kernel compiled for every generation of GPUs, of which `make test` has one.
test-all: env
	SJEPA_ALL_CASES=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# A thousand SIGKILLs take about as long as the tests, so they are not among them; a few are.
torture: env
	$(BIN)/python -m tests.torture --kills $(KILLS) $(RECORD)

# Takes each guard of the table away, and wants its tests to fail.
guards: env
	$(BIN)/python -m tests.guards --out benchmarks/results/cpu-2-cores/guards.json --document docs/reliability.md

fuzz: env
	$(BIN)/python -m tests.fuzz --inputs $(INPUTS) $(FUZZ_FLAGS)

$(CUDA_STAMP): constraints.txt tests/null_gpu/constraints.txt
	test -x $(CUDA_BIN)/python || $(PYTHON) -m venv $(CUDA_VENV)
	grep -vE '^(torch|triton)==' constraints.txt | cat - tests/null_gpu/constraints.txt > $(CUDA_PINS)
	$(CUDA_BIN)/python -m pip install --quiet -c $(CUDA_PINS) torch
	$(CUDA_BIN)/python -m pip install --quiet -c $(CUDA_PINS) $(REHEARSED)
	$(CUDA_BIN)/python -m tests.null_gpu -c "import torch; assert torch.cuda.is_available()"
	touch $@

cuda: $(CUDA_STAMP)

rehearse: cuda
	$(CUDA_BIN)/python -m tests.null_gpu -m pytest $(REHEARSE)

bench: env
	$(BIN)/python -m pytest benchmarks/ --benchmark-only

# Seconds from N-UCLA's raw file to 1-NN accuracy of 80 %: a row of the README's table.
speedrun: env
	$(BIN)/python -m benchmarks.speedrun run --data $(DATA)

lint: env pydoclint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

# An environment of its own: its docstring parser overwrites the module of tyro's.
$(PYDOCLINT): constraints.txt | env
	$(BIN)/python -m venv $(VENV)/pydoclint
	$(VENV)/pydoclint/bin/python -m pip install --quiet -c constraints.txt pydoclint
	touch $@

pydoclint: $(PYDOCLINT)
	$(PYDOCLINT) --quiet --config pyproject.toml sjepa_fast kernels/sjepa_kernels

$(DOCS)/sphinx-build: constraints.txt | env
	$(BIN)/python -m venv $(VENV)/docs
	$(DOCS)/python -m pip install --quiet -c constraints.txt $(DOCS_TOOLS)
	touch $@

# The site, in build/site: a warning is an error, and so is a link to what is not there. What is
# written as a session of Python is run, and so is the example that needs scikit-learn.
docs: $(DOCS)/sphinx-build
	$(IN_DOCS) -m pytest -q tests/examples/test_classify_folder.py
	$(IN_DOCS) -m sphinx -q -W --keep-going -b doctest docs build/doctest
	$(IN_DOCS) -m sphinx -q -W --keep-going -b html docs build/site

# The pictures of README and site, from embedded data and committed results.
pictures: env
	$(BIN)/python -m benchmarks.pictures

# Tools that look at packages and are needed by hand alone: the newest.
$(AUDIT)/pip-audit: | env
	$(BIN)/python -m venv $(VENV)/audit
	$(AUDIT)/python -m pip install --quiet pip-audit pip-tools

# Known vulnerabilities of all that is pinned; needs the vulnerability service of the package index.
# A package that the service does not know is a failure, or silence would look like health.
audit: $(AUDIT)/pip-audit
	$(AUDIT)/pip-audit --strict --disable-pip --no-deps -r constraints.txt

# The lock files of continuous integration, anew after a change of constraints.txt. sjepa-kernels is
# on no index; it is built for what it requires, and then left out, as torch is.
lock: $(AUDIT)/pip-audit
	$(AUDIT)/python -m pip wheel --quiet --no-deps --wheel-dir build/lock ./kernels
	$(LOCK) .ci/requirements.txt --find-links build/lock --extra dev pyproject.toml kernels/pyproject.toml
	echo pydoclint | $(LOCK) .ci/requirements-lint.txt -
	printf '%s\n' $(DOCS_TOOLS) | $(LOCK) .ci/requirements-docs.txt -
	sed -i -E '/^(torch|sjepa-kernels)==/,/[^\\]$$/d' .ci/requirements.txt
	sed -i '1i # What continuous integration installs, with the hash of every file that pip may take.\n# Made by `make lock` out of pyproject.toml and constraints.txt.' .ci/requirements*.txt

# The part of three.js that the report's page has inside, with its licence; needs npm and its
# registry, and nobody but who changes three.entry.js or the version.
three:
	mkdir -p build/three
	cp sjepa_fast/reporting/three.entry.js build/three/
	cd build/three && npm install --silent --no-save --ignore-scripts --prefix . three@$(THREE) esbuild@$(ESBUILD)
	build/three/node_modules/.bin/esbuild build/three/three.entry.js --bundle --minify --format=iife \
		--global-name=THREE --charset=ascii --legal-comments=none --log-level=warning \
		"--banner:js=/* three.js $(THREE), bundled by make three.$$(echo; echo; cat build/three/node_modules/three/LICENSE) */" \
		--outfile=sjepa_fast/reporting/page/three.bundle.js

# sjepa_kernels as Hugging Face's Kernel Hub wants it.
hub:
	$(PYTHON) kernels/hub.py build/hub

clean:
	rm -rf build dist *.egg-info kernels/build kernels/dist kernels/*.egg-info
	rm -rf $(VENV) $(CUDA_VENV) runs .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
	rm -f kernels/sjepa_kernels/_csrc* sjepa_fast/data/readers/_skeleton_text.*
	find sjepa_fast kernels csrc tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
