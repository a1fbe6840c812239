# Everything a person does here. PYTHON may name another interpreter of 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUBJECTS ?= 500
# One process unpacks packages, all cores compile them: half a minute sooner on two cores. What no command here imports
# is left out, and what does not compile is made for another Python.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
COMPILE = @$(BIN)/python -m compileall -qq -j 0 -x '/tests?/|/transformers/models/' $(VENV)/lib >/dev/null 2>&1 || true

.PHONY: help demo test proof check lint docs format clean

help:  ## Say what there is to make.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

# Two stamps: `make demo` needs no test tools, `make test` adds them.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[all]'
	$(COMPILE)
	touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(INSTALL) -e '.[all,docs,dev]'
	$(COMPILE)
	touch $@

demo: $(VENV)/.installed  ## Simulate a hospital, run everything on it, publish a release.
	@$(BIN)/timeloom demo --subjects $(SUBJECTS) || { code=$$?; [ $$code -eq 2 ] || exit $$code; }

test: $(VENV)/.tools  ## Run the checks, build the documentation and run every test.
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint docs
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not proof"

proof: $(VENV)/.tools  ## The tests that take minutes each: learning from a release, nights with several networks, servers that are killed.
	$(BIN)/python -m pytest -n 2 --dist load -m proof

check: $(VENV)/.tools  ## The quick loop: lint and the tests that are not marked `whole`, in about two minutes.
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not whole"

lint: $(VENV)/.tools  ## Check style, types and the order of the layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.tools  ## Build the documentation as a site, site/index.html; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(VENV)/.tools  ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment, the demo and the site.
	rm -rf $(VENV) timeloom-demo site
