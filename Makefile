# Everything below sets itself up in .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_CONSTRAINT=$(CURDIR)/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet

.PHONY: demo test test-all check format bench docs litert clean

demo: $(VENV)/user
	$(BIN)/edgestill run digits

test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(PYTEST)

test-all: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST)

check: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/dev
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

# The converter of LiteRT files: it needs other versions than edgestill, so an environment of its own.
litert: $(VENV)/litert/bin/litert.done

docs: $(VENV)/dev
	$(BIN)/python docs/recipe_reference.py

clean:
	rm -rf $(VENV) build runs

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/litert/bin/litert.done: $(BIN)/python
	$(PYTHON) -m venv $(VENV)/litert
	$(VENV)/litert/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 'litert-torch==0.10.*'
	touch $@

$(VENV)/user: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

# timm imports torchvision, whose registry build does not fit a CPU torch: both without their dependencies, for tests only.
$(VENV)/dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]' --report $(VENV)/resolution.json
	$(PIP) --no-deps torchvision==0.28.0 timm==1.0.31
	touch $(VENV)/user $@
