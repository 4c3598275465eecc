# make demo   trains, evaluates with rejection, exports: see demo_output/
# make test   the tests
# make docs   the site: docs/_build/html/index.html
# Each builds the virtual environment it needs, once.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what is imported; compiling all of TensorFlow takes as long as the download.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
SOURCES := setup.py pyproject.toml
WORKERS ?= 3  # one more than cores, as tests wait for processes and disks

.PHONY: demo docs test test-dear test-docs test-quick test-slow test-versions check-package types lint format \
	bench-heteroscedastic \
	bench-import-time bench-label-noise bench-vbll bench-sparse-bayes bench-flops \
	bench-rapid-training bench-gradient-features bench-ood bench-selective \
	bench-report-page bench-scaling bench-export bench-large-data bench-uci-regression \
	bench-serving-load \
	bench-rules bench-monitor bench-scores bench-stacked bench-quantization bench-methods \
	bench-batch-ensemble bench-runtimes bench-export-sizes bench-sngp clean

demo: $(VENV)/.examples
	$(BIN)/python examples/quickstart.py --output demo_output

test: $(VENV)/.test
	$(BIN)/python tests/run.py -n $(WORKERS) -q -m "not slow"

# Snippets, tutorials and pages of the site that `make test` leaves out; `.ci/run` runs them, too.
test-docs: $(VENV)/.test
	$(BIN)/python tests/run.py -n $(WORKERS) -q -m slow tests/test_docs.py tests/test_tasks.py \
		tests/examples/test_tutorials.py tests/examples/test_tutorial_scripts.py tests/test_site.py \
		tests/examples/test_last_layers_example.py tests/examples/test_notebooks.py \
		tests/examples/test_ship_it.py

# Tests of seconds that have no cheaper sibling; `.ci/run` runs them, too.
test-dear: $(VENV)/.test
	$(BIN)/python tests/run.py -n $(WORKERS) -q -m dear $$(grep -rl "pytest.mark.dear" tests --include="test_*.py")

test-quick: $(VENV)/.test
	$(BIN)/python tests/run.py -n $(WORKERS) -q --quick

test-slow: $(VENV)/.test
	$(BIN)/python tests/run.py -n $(WORKERS) -q -m slow

# A wheel in clean environments of other versions of Python and packages; says what is skipped.
test-versions: $(VENV)/.test
	$(BIN)/python tests/versions.py

# What an index asks of a wheel and a source distribution.
check-package: $(VENV)/.dev
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

# Types as users see them, by the examples; what the package does inside is not looked into.
types: $(VENV)/.dev
	$(BIN)/mypy examples/*.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Every tutorial runs; what has not changed since the last build is not run again.
docs: .venv-docs/.done
	TF_CPP_MIN_LOG_LEVEL=3 .venv-docs/bin/python -m sphinx -W --keep-going -q docs docs/_build/html

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-heteroscedastic: $(VENV)/.examples .venv-edward2/.done
	$(BIN)/python benchmarks/heteroscedastic.py

bench-import-time: $(VENV)/.examples
	$(BIN)/python benchmarks/import_time.py --json benchmarks/import_time.json

bench-large-data: $(VENV)/.examples
	$(BIN)/python benchmarks/large_data.py

bench-uci-regression: $(VENV)/.examples
	$(BIN)/python benchmarks/uci_regression.py

bench-label-noise: $(VENV)/.examples
	$(BIN)/python benchmarks/label_noise.py --json benchmarks/label_noise.json
	$(BIN)/python benchmarks/label_noise.py --json benchmarks/label_noise.json --report

bench-vbll: $(VENV)/.examples .venv-edward2/.done .venv-vbll/.done
	$(BIN)/python benchmarks/vbll.py

bench-sngp: $(VENV)/.examples .venv-proba/.done
	$(BIN)/python benchmarks/sngp.py --json benchmarks/sngp.json

bench-sparse-bayes: $(VENV)/.examples
	$(BIN)/python benchmarks/sparse_bayes.py

bench-flops: $(VENV)/.examples
	$(BIN)/python benchmarks/flops.py

bench-rapid-training: $(VENV)/.examples
	$(BIN)/python benchmarks/rapid_training.py

bench-gradient-features: $(VENV)/.examples
	$(BIN)/python benchmarks/gradient_features.py

bench-selective: $(VENV)/.examples
	$(BIN)/python benchmarks/selective.py

bench-scores: $(VENV)/.examples
	$(BIN)/python benchmarks/scores.py

bench-stacked: $(VENV)/.examples
	$(BIN)/python benchmarks/stacked.py --json benchmarks/stacked.json

bench-batch-ensemble: $(VENV)/.examples
	$(BIN)/python benchmarks/batch_ensemble.py

bench-quantization: $(VENV)/.examples
	$(BIN)/python benchmarks/quantization.py --json benchmarks/quantization.json

bench-methods: $(VENV)/.examples
	$(BIN)/python benchmarks/methods.py --cache $(HOME)/.cache/tfuq-methods
	$(BIN)/python benchmarks/methods.py --report
	$(BIN)/python benchmarks/segmentation.py --cache $(HOME)/.cache/tfuq-methods
	$(BIN)/python benchmarks/segmentation.py --report
	$(BIN)/python benchmarks/finetuning.py --cache $(HOME)/.cache/tfuq-methods
	$(BIN)/python benchmarks/finetuning.py --report

# OpenVINO, and npm and Chromium for the browser.
bench-runtimes: $(VENV)/.test
	$(BIN)/python benchmarks/runtimes.py --json benchmarks/runtimes.json
	$(BIN)/python benchmarks/runtimes.py --json benchmarks/runtimes.json --report

bench-export-sizes: $(VENV)/.test
	$(BIN)/python benchmarks/export_sizes.py --json benchmarks/export_sizes.json
	$(BIN)/python benchmarks/export_sizes.py --json benchmarks/export_sizes.json --report

bench-serving-load: $(VENV)/.test
	$(BIN)/python benchmarks/serving_load.py --json benchmarks/serving_load.json

bench-monitor: $(VENV)/.examples
	$(BIN)/python benchmarks/monitor.py --json benchmarks/monitor.json

bench-rules: $(VENV)/.examples .venv-mapie/.done
	.venv-mapie/bin/python benchmarks/rules.py --check
	$(BIN)/python benchmarks/rules.py
	$(BIN)/python benchmarks/rules.py --again
	$(BIN)/python benchmarks/rules_bound.py

bench-report-page: $(VENV)/.test
	$(BIN)/python benchmarks/report_page.py

bench-export: $(VENV)/.examples
	$(BIN)/python benchmarks/export.py

bench-scaling: $(VENV)/.examples
	$(BIN)/python benchmarks/scaling.py

bench-ood: $(VENV)/.examples
	$(BIN)/python benchmarks/ood.py

clean:
	rm -rf $(VENV) .venv-docs docs/_build docs/api/names docs/tutorials/scripts .venv-edward2 .venv-vbll .venv-proba .venv-mapie demo_output build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.examples $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: $(BIN)/python $(SOURCES)
	$(PIP) -e ".[$*]"
	touch $@

.venv-docs/.done: $(SOURCES)
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
		-e ".[docs]"
	touch $@

# edward2 0.0.2 does not import beside a current SciPy, hence an environment of its own.
.venv-edward2/.done:
	$(PYTHON) -m venv .venv-edward2
	.venv-edward2/bin/python -m pip install --quiet edward2==0.0.2 tensorflow tf-keras \
		"tensorflow-probability[tf]"
	touch $@

.venv-vbll/.done:
	$(PYTHON) -m venv .venv-vbll
	.venv-vbll/bin/python -m pip install --quiet vbll==0.4.9 torch==2.13.0 numpy
	touch $@

.venv-proba/.done:
	$(PYTHON) -m venv .venv-proba
	.venv-proba/bin/python -m pip install --quiet keras-proba==0.1.0 tensorflow==2.21.0 keras==3.15.1
	touch $@

.venv-mapie/.done:
	$(PYTHON) -m venv .venv-mapie
	.venv-mapie/bin/python -m pip install --quiet mapie==1.6.0
	touch $@
