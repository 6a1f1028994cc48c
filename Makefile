# make demo    install, then run the whole pipeline on the embedded sample
# make test    install, then run the tests, in WORKERS processes, without those marked slow or browser
# make test-all   all tests
# make test-services   the tests on Postgres, Redis and Slurm, which are Debian packages
# make lint    formatting, lint, types, import rules
# make docs    the documentation as a site in build/site; a broken link or a malformed docstring fails
# make hooks   let git run the quick checks before each commit
# EXTRAS=dev,gpu adds CUDA for JAX; PYTHON=python3.12 chooses the interpreter; TORCH=any: see .ci/install
VENV    ?= .venv
WORKERS ?= 2
EXTRAS  ?= dev
STAMP   := $(VENV)/.installed-$(EXTRAS)
BIN     := $(VENV)/bin

# Without stored bytecode, each of the thousands of processes of the tests would compile all libraries again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-services lint docs hooks format install constraints clean

demo: $(STAMP)
	$(BIN)/jora run

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations 40 --durations-min 5 -m "not slow and not browser"

test-all: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-services: $(STAMP)
	$(BIN)/python -m pytest tests/deploy -m service

# The ignored warning is pyright's question to the npm registry whether it is the newest; the version is pinned.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(BIN)/lint-imports

# The variable silences an advertisement for the successor of MkDocs.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

hooks: $(STAMP)
	$(BIN)/pre-commit install

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt .ci/install
	.ci/install "$(VENV)" "$(EXTRAS)"
	@touch "$(STAMP)"

# Resolves pyproject.toml anew for every supported Python. The CUDA libraries of the Linux torch are left out: its own
# wheel pins them, and the CPU wheel has none.
constraints: $(STAMP)
	grep '^#' constraints.txt > constraints.new
	echo 'torch==2.13.0' | $(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate \
	    --extra dev --extra scale --extra kubernetes --constraints - pyproject.toml \
	    | grep -vE '^(nvidia-|cuda-|triton==)' >> constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf "$(VENV)" build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
