# make .venv, make demo, make test need only Python 3.11+ and make.
#   make test   what every change must pass; to take at most 6 minutes on 2 cores
#   make ci     test, and the longer checks; to take at most 20 minutes more on 2 cores
#   make sim SEEDS=2000 START=1
#   make guards        each guard of the protocol taken away: the simulator must find the harm
#   make nth           one migration, with each of its substrate calls failing, timing out and crashing its process
#   make pythons       what depends on the interpreter, on each newer Python that is installed here
#   make torture MINUTES=30   real processes killed, stopped and cut off, on one server and on a cluster of three
#   make soak MINUTES=30   sessions, timers, agents and nodes come and go, and nothing may grow
#   make bench         all that docs/benchmarks.md tells, beside the peers; 30 minutes, on a machine that does nothing else
#   make bench-quick   the same with less patience, in 3 minutes; it leaves the page alone
#   make lock   resolve requirements/*.lock again (needs uv; nothing else does)

PYTHON ?= python3
UV ?= uv
SEEDS ?= 150
START ?= 1
MINUTES ?= 1
ARGS ?=
SIM ?=

BIN := .venv/bin
STAMP := .venv/installed
LOCKS := requirements/dev.lock requirements/runtime.lock
PEERS := build/peers/installed
PEERS_OR_NOT := $(MAKE) peers || echo "the peers could not be installed: they are left out, and the page says so" >&2

.PHONY: pythons demo test lint types unit sim guards nth torture soak ci bench bench-quick bench-smoke peers wheel-check lock clean

# The stamp is written last, so an installation that broke half-way is done again.
.venv: $(STAMP)

$(STAMP): pyproject.toml requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "mielin-cells needs Python 3.11 or newer, but '$(PYTHON)' is not; name one that is: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/mielin demo $(ARGS)

# Two at a time: the types are checked while the tests wait for processes.
test: $(STAMP)
	$(MAKE) -j2 --output-sync=line lint types unit sim

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/basedpyright

# Most tests wait for timers and processes, so more of them run at a time than there are processors.
unit: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

sim: $(STAMP)
	$(BIN)/python -m mielin_cells.testing.simulate --replay tests/seeds.txt
	$(BIN)/python -m mielin_cells.testing.simulate --seeds $(SEEDS) --start $(START) --shrink $(SIM)

guards: $(STAMP)
	GUARDS=all $(BIN)/python -m pytest --timeout 300 tests/testing/test_guards.py

nth: $(STAMP)
	NTH_CALL=every $(BIN)/python -m pytest --timeout 300 tests/testing/test_nth_call.py

torture: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m torture --minutes $(MINUTES) $(ARGS)

soak: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m soak --minutes $(MINUTES) $(ARGS)

ci: test
	$(MAKE) sim SEEDS=500 START=1000 SIM=--reach
	$(MAKE) guards
	$(MAKE) nth
	MATRIX_SEEDS=6 $(BIN)/python -m pytest tests/testing/test_matrix.py
	MATRIX_CELLS=others $(BIN)/python -m pytest tests/deployment/test_process_matrix.py
	$(MAKE) torture
	$(MAKE) soak MINUTES=2
	$(MAKE) wheel-check
	$(MAKE) pythons
	$(MAKE) bench-smoke
	$(MAKE) demo

# What depends on the interpreter, on each newer one that is installed here.
pythons: $(STAMP)
	.ci/pythons

bench: $(STAMP)
	$(PEERS_OR_NOT)
	$(BIN)/python -m benchmarks --size full $(ARGS)

bench-quick: $(STAMP)
	$(PEERS_OR_NOT)
	$(BIN)/python -m benchmarks --size quick $(ARGS)

# That each part runs, without peers; it measures nothing.
bench-smoke: $(STAMP)
	$(BIN)/python -m benchmarks --size smoke
	$(BIN)/python -m benchmarks.bench_steps --smoke
	$(BIN)/python -m benchmarks.bench_substrate --smoke

# Who is measured beside us, and what draws the plots.  The page tells of those that are not there.
peers: $(PEERS)

$(PEERS): requirements/peers.lock
	rm -rf build/peers
	$(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip install --disable-pip-version-check --require-hashes -r requirements/peers.lock
	touch $(PEERS)

# The wheel, in an environment that has nothing but the locked runtime dependencies.
wheel-check: $(STAMP)
	rm -rf build/wheel build/bare
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel
	$(PYTHON) -m venv build/bare
	build/bare/bin/python -m pip install --disable-pip-version-check --require-hashes -r requirements/runtime.lock
	build/bare/bin/python -m pip install --disable-pip-version-check --no-deps --no-index build/wheel/*.whl
	build/bare/bin/python -m pip check --disable-pip-version-check
	build/bare/bin/python tests/project/wheel_contents.py
	build/bare/bin/mielin --help
	build/bare/bin/python examples/hello.py > build/hello.txt
	cat build/hello.txt
	test "$$(tail -n 1 build/hello.txt)" = 3

lock:
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --all-extras pyproject.toml --output-file requirements/dev.lock
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --constraints requirements/dev.lock pyproject.toml \
	  --output-file requirements/runtime.lock
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links requirements/peers.txt --output-file requirements/peers.lock

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
