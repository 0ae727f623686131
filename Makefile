PYTHON ?= python3
PY := .venv/bin/python

.PHONY: train test check lint torture versions pictures gpu-check clean

# The main job: DLRM on Criteo-Kaggle-shaped data with 5 % of the rows on the device.
train: .venv/installed
	$(PY) -m cachedlrm.train --gpu-cache-ratio 0.05

# Lint, types and all tests, in two processes: a file's tests stay together, as they share runs.
test check: lint
	$(PY) -m pytest -n 2 --dist loadfile

# Kills training 200 times at random instants, resumes, and compares bits; then runs on a simulated CUDA device under
# every schedule.
torture: .venv/installed
	$(PY) tests/support/kill.py 200
	SIMCUDA_ALL=1 $(PY) -m pytest tests/promises/test_simulated_cuda.py
	for schedule in eager late copies-first training-first random; do \
		SIMCUDA_SCHEDULE=$$schedule $(PY) -m pytest -m gpu tests/gpu tests/library || exit 1; \
	done

# All tests under each version of Python and torch that the package accepts and this machine has (benchmarks/versions.py).
versions: .venv/installed
	$(PY) benchmarks/versions.py

# The pictures of README.md, from a short run; the second needs chromium.
pictures: .venv/installed
	$(PY) docs/pictures/draw.py

lint: .venv/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# GPU tests, speed beside one resident tensor, copies and memory, in at most 8 minutes; the report goes to profiles/.
# GPU_PYTHON may name an interpreter that already has a CUDA torch.
GPU_PYTHON ?= $(PY)
gpu-check: $(if $(filter $(PY),$(GPU_PYTHON)),.venv/installed)
	$(GPU_PYTHON) benchmarks/gpu_check.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[flights,dev]'
	touch $@

clean:
	rm -rf .venv .versions build *.egg-info
