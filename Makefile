# make .venv, make demo, make test need only Python 3.11+ and make.
#   make test   what every change must pass; it took 8 minutes on 2 cores beside other work, and is to take 6 at most
#   make ci     test, and the longer checks; it is to take 20 minutes at most
#   make sim SEEDS=2000 START=1
#   make sim-scale   the simulator with 10, 100 and 1,000 nodes of 100 agents: what each costs, and that none is lost
#   make long          the tests that take minutes: most guards, much of nth, and all cells of the fault matrices
#   make guards        each guard of the protocol taken away: the simulator must find the harm
#   make nth           one migration, with each of its substrate calls failing, timing out and crashing its process
#   make pythons       the tests that depend on the interpreter, on each newer Python that is installed here
#   make torture MINUTES=30   real processes killed, stopped and cut off, on one server and on a cluster of three
#   make clusters      deployments of several clusters and leaf servers, and the pages with commands as they stand
#   make soak MINUTES=30   sessions, timers, agents and nodes come and go, and nothing may grow
#   make bench         all figures of docs/benchmarks.md, beside the peers; 30 minutes, on a machine that does nothing else
#   make bench-scale   its part about cost as agents and nodes grow, in 10 minutes; ARGS="--size quick" in 5
#   make bench-quick   the same with less patience, in 6 minutes; it leaves the page alone
#   make docs   the site, in build/site; a broken link, a missing anchor or a page without a place is an error
#   make lock   resolve requirements/*.lock again (needs uv; nothing else does)

PYTHON ?= python3
UV ?= uv
SEEDS ?= 60
START ?= 1
MINUTES ?= 1
ARGS ?=
SIM ?=

BIN := .venv/bin
STAMP := .venv/installed
LOCKS := requirements/dev.lock requirements/runtime.lock
PEERS := build/peers/installed
PEERS_OR_NOT := $(MAKE) peers || echo "the peers could not be installed: they are left out, and the page says so" >&2

# Where it is set, as in many containers, each of some hundred processes would compile all sources: half of what its start costs.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: compiled pythons demo test lint types unit sim sim-scale long guards nth clusters torture soak ci ci-soak ci-sim bench bench-scale bench-quick bench-smoke peers solver wheel-check lock clean

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

demo: compiled
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

# Most tests wait for timers and processes, so more of them run at a time than there are processors.  A worker that has
# nothing left takes tests over from the one that has most, so that no long file keeps the others waiting at the end.
PYTEST := $(BIN)/python -m pytest -n 3 --dist worksteal
LONG := $(PYTEST) --timeout 300

# Before the tests, whose processes all read what it writes.
compiled: $(STAMP)
	$(BIN)/python -m compileall -q src

unit: compiled
	$(PYTEST) $(ARGS)

sim: compiled
	$(BIN)/python -m mielin_cells.testing.simulate --replay tests/seeds.txt
	$(BIN)/python -m mielin_cells.testing.simulate --seeds $(SEEDS) --start $(START) --shrink $(SIM)

sim-scale: $(STAMP)
	$(BIN)/python -m mielin_cells.testing.scale --out build/scale/sim.json $(ARGS)

# Files whose tests play one story very often; `tests/support/depth.py` says how often.
NTH := $(addprefix tests/,testing/test_nth_call.py testing/test_nth_talk.py node/activation/test_store_errors.py)
DEEP := $(NTH) $(addprefix tests/testing/test_,guards.py matrix.py matrix_heard.py) tests/deployment/test_process_matrix.py \
  tests/demo/test_demo_operations.py

guards: compiled
	DEPTH=all $(LONG) -rP tests/testing/test_guards.py

nth: compiled
	DEPTH=all $(LONG) $(NTH)

# One run, so that what waits for processes and what computes share the processors.
long: compiled
	DEPTH=ci $(LONG) $(DEEP)

torture: compiled
	PYTHONPATH=tests $(BIN)/python -m torture --minutes $(MINUTES) $(ARGS)

clusters: compiled
	$(LONG) tests/clusters

soak: compiled
	PYTHONPATH=tests $(BIN)/python -m soak --minutes $(MINUTES) $(ARGS)

.PHONY: docs
docs: $(STAMP)
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html"

# What computes runs beside what waits for processes.
ci: test
	$(MAKE) long
	$(MAKE) -j2 --output-sync=target ci-soak ci-sim clusters torture docs pythons wheel-check
	$(MAKE) bench-smoke
	$(MAKE) demo

ci-soak: $(STAMP)
	$(MAKE) soak MINUTES=2

ci-sim: $(STAMP)
	$(MAKE) sim SEEDS=300 START=1000 SIM=--reach

pythons: $(STAMP)
	.ci/pythons

bench-scale: $(STAMP)
	$(BIN)/python -m benchmarks --size full --only scale $(ARGS)

bench: $(STAMP)
	$(PEERS_OR_NOT)
	$(BIN)/python -m benchmarks --size full $(ARGS)

bench-quick: $(STAMP)
	$(PEERS_OR_NOT)
	$(BIN)/python -m benchmarks --size quick $(ARGS)

# That each part runs, without peers; it measures nothing.
bench-smoke: compiled
	$(BIN)/python -m benchmarks --size smoke
	$(BIN)/python -m benchmarks.bench_steps --smoke
	$(BIN)/python -m benchmarks.bench_substrate --smoke

# The peers that are measured beside this library, and matplotlib.  The page names the peers that are missing.
peers: $(PEERS)

# What the part "placing" is compared with.  Without it the page says that it was not measured.
solver: requirements/solver.lock
	$(PYTHON) -m venv build/solver
	build/solver/bin/python -m pip install --disable-pip-version-check --require-hashes -r requirements/solver.lock

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
	$(BIN)/python tests/project/install_page.py build/wheel

lock:
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --all-extras pyproject.toml --output-file requirements/dev.lock
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --constraints requirements/dev.lock pyproject.toml \
	  --output-file requirements/runtime.lock
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links requirements/peers.txt --output-file requirements/peers.lock
	$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links requirements/solver.txt --output-file requirements/solver.lock

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
