# make demo: the main job, from a fresh clone. make test: all tests. Needs python3 (3.11+) and make; g++ makes it fast.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check
SOURCES := pyproject.toml CMakeLists.txt $(shell find src -name '*.py' -o -name '*.cpp' -o -name '*.h')
MODEL := smollm2-135m

.PHONY: demo test check fix tiny nightly docs bench clean

demo: .venv/installed  ## generate text with a real model
	@$(BIN)/alpage models pull $(MODEL)
	@$(BIN)/alpage generate $(MODEL) --chat --prompt "Explain in three sentences how a rainbow forms."

test: .venv/test  ## all tests, against the installed package
	@$(BIN)/alpage models pull $(MODEL)
	$(BIN)/pytest -q

check: .venv/test .venv/lint .venv/docs  ## style, types, import contracts, docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check -q
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict -q

fix: .venv/lint  ## format, and mend what can be mended
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

tiny: .venv/test  ## the quick tests
	$(BIN)/pytest -q -m "not slow"

nightly: .venv/test  ## state machines for thousands of steps
	$(BIN)/pytest -q --hypothesis-profile=nightly tests/unit

docs: .venv/test .venv/docs  ## read the docs at http://127.0.0.1:8000
	$(BIN)/mkdocs serve

bench: .venv/installed  ## KV memory: waste and sharing
	@$(BIN)/alpage models pull $(MODEL)
	$(BIN)/python benchmarks/kv_memory.py

clean:
	rm -rf .venv build dist site

# torch by itself first, so that nothing asks for another build of it.
.venv/torch:
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	@touch $@

.venv/installed: .venv/torch $(SOURCES)
	$(PIP) .
	@touch $@

.venv/test .venv/lint .venv/docs: .venv/installed
	$(PIP) "pip>=25.1"
	$(PIP) --group $(notdir $@)
	@touch $@
