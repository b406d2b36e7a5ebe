# make demo: the main job, from a fresh clone. make test: all tests. Needs python3 (3.11+) and make; g++ makes it fast.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check
SOURCES := pyproject.toml CMakeLists.txt $(shell find src -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -path '*/http/page/*')
MODEL := smollm2-135m

.PHONY: demo test check setup fix tiny nightly sanitize arm docs bench clean
.NOTPARALLEL:

demo: .venv/installed  ## generate text with a real model
	@$(BIN)/alpage models pull $(MODEL)
	@$(BIN)/alpage generate $(MODEL) --chat --prompt "Explain in three sentences how a rainbow forms."

test: .venv/test  ## all tests, against the installed package
	@$(BIN)/alpage models pull $(MODEL)
	$(BIN)/pytest -q

check: setup  ## style, types, import contracts, docs
	$(BIN)/ruff check -q
	$(BIN)/ruff format --check -q
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

setup: .venv/test .venv/lint .venv/docs  ## a .venv with everything

fix: .venv/lint  ## format, and mend what can be mended
	$(BIN)/ruff check -q --fix-only
	$(BIN)/ruff format

tiny: .venv/test  ## the quick tests
	$(BIN)/pytest -q -m "not slow"

nightly: sanitize  ## properties and state machines, for long
	$(BIN)/pytest -q --hypothesis-profile=nightly tests/unit

# The interpreter is not built so, which is why the runtimes are loaded first, and leaks are its own.
sanitize: .venv/test  ## the kernels' tests, in a build that watches every access
	$(PIP) --no-deps --upgrade --target build/sanitize -C cmake.define.ALPAGE_SANITIZE=address,undefined .
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize $(BIN)/pytest -q tests/model/test_native_*.py

# Needs Debian 12 or a sibling, with g++-aarch64-linux-gnu and qemu-user.
arm: .venv/test build/arm/ready  ## the kernels' tests, built for ARM and under an emulator
	$(BIN)/cmake -S . -B build/arm/kernels -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	  -DCMAKE_CXX_FLAGS=-I$(CURDIR)/build/arm/root/usr/include -DPython_EXECUTABLE=$(CURDIR)/tests/arm/python \
	  -DPython_INCLUDE_DIR=$(CURDIR)/build/arm/root/usr/include/python3.11 \
	  -Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir) > build/arm/cmake.log
	$(BIN)/cmake --build build/arm/kernels >> build/arm/cmake.log
	rm -rf build/arm/lib && mkdir build/arm/lib && cp -r src/alpage build/arm/lib/
	$(BIN)/cmake --install build/arm/kernels --prefix build/arm/lib >> build/arm/cmake.log
	PYTHONPATH=build/arm/lib:build/arm/site OMP_NUM_THREADS=1 tests/arm/python -m pytest -q -p no:cacheprovider \
	  tests/model/test_native_*.py

build/arm/ready: tests/arm/setup.sh
	tests/arm/setup.sh
	@touch $@

docs: .venv/test .venv/docs  ## read the docs at http://127.0.0.1:8000
	$(BIN)/mkdocs serve

bench: .venv/installed  ## speed on the four offline workloads
	@$(BIN)/alpage models pull $(MODEL)
	$(BIN)/python -m benchmarks.workloads build/workloads
	for w in w1 w2 w3 w4; do $(BIN)/alpage bench offline $(MODEL) --workload build/workloads/$$w.jsonl; done

clean:
	rm -rf .venv build dist site

# torch by itself first, so that nothing asks for another build of it.
.venv/torch:
	$(PYTHON) -m venv .venv
	$(PIP) "pip>=25.1"  # knows --group
	$(PIP) torch==2.13.0
	@touch $@

# pip keeps to itself what the build says, so the kernels are asked.
.venv/installed: .venv/torch $(SOURCES)
	$(PIP) .
	@$(BIN)/python -c "from alpage.native import unavailable_reason; print(unavailable_reason() or 'alpage is installed, with its native kernels')"
	@touch $@

.venv/test .venv/lint .venv/docs: .venv/installed
	$(PIP) --group $(@F)
	@touch $@
