# Runs Refit from a virtual environment of its own, which is made once and again when the pinned versions change.
#
#   make train [ARGS="--training.num_epochs 5"]
#   make test  [ARGS="-k settings"]
#   make reference
#   make e2e   [ARGS="-k schedule"]
#   make lint
#   make docs
#   make bench [ARGS="--quick"]
#   make mutants [ARGS="data.splits promotion.decision"]
#   make versions
#   make gpu-check
#   make clean
#
# Needs Python 3.11 or newer; another one than `python3` is named by `make train PYTHON=python3.12`.

PYTHON ?= python3
BIN := .venv/bin
WITH_PEERS := .[dev,bench]
WITH_SITE := .[dev,docs]
SLOW = $(shell grep -rl "mark.slow" tests --include="*.py")
NIGHTS := test_nights_end_in_a_first_champion_then_in_nothing_then_in_a_candidate_that_must_beat_it

# Where this is set, a process compiles all that it imports anew, which doubles the time in which tests are found.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: train test reference e2e lint docs bench mutants versions gpu-check clean
.NOTPARALLEL:

train: .venv/train.stamp
	@$(BIN)/refit train $(ARGS)

# Two tests at a time, of one thread each, as the networks are small.
test: .venv/test.stamp
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 -m "not slow" $(ARGS)

# Three at a time, as one waits most of the time. Those of one file share a server; the order that files come in, not that of their
# number of tests, starts the longest first.
e2e: .venv/test.stamp
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m slow $(SLOW) $(ARGS)

# Fast tests again, of what stays when the engine is taken away: of the room that trains, of the models the plain loops, and of whole
# runs those without Prefect. Of the flows, which train by the same functions, the oracle and one night show that they run.
reference: .venv/test.stamp
	@OMP_NUM_THREADS=1 tests/without_engine.sh $(CURDIR)/$(BIN)/pytest -n 3 -m "not slow" \
		$(addprefix tests/refit/,models/test_plain_loops.py training runs/test_train.py) \
		$(addprefix tests/flows/,test_oracle.py test_retraining.py::$(NIGHTS)) $(ARGS)

lint: .venv/test.stamp
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# Fails where a page names a page, a heading or a function that is not there. The variable keeps the theme from advertising.
docs: .venv/docs.stamp
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "The documentation is in site/index.html."

bench: .venv/bench.stamp
	@$(BIN)/python benchmarks/speed.py $(ARGS)

# Not part of what every change must pass: it takes long, and needs a judgement.
mutants: .venv/test.stamp
	@$(BIN)/python tests/mutants.py $(ARGS)

# Not part of it either: what touches Prefect, with the oldest and the newest that pyproject.toml allows, each beside .venv.
versions: .venv/test.stamp
	@tests/versions.sh $(ARGS)

# On a machine with a GPU: nine minutes. `ARGS=--stand-in` tries the script without one.
gpu-check: .venv/bench.stamp
	@$(BIN)/python benchmarks/gpu_check.py $(ARGS)

clean:
	rm -rf .venv site

.venv/train.stamp: pyproject.toml constraints.txt
	$(call install,.)
	@touch $@

.venv/test.stamp: pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch .venv/train.stamp $@

.venv/docs.stamp: pyproject.toml constraints.txt
	$(call install,$(WITH_SITE))
	@touch .venv/train.stamp .venv/test.stamp $@

.venv/bench.stamp: pyproject.toml constraints.txt
	$(call install,$(WITH_PEERS))
	@touch .venv/train.stamp .venv/test.stamp $@

# `unfinished` outlives a set-up that was cut short; the next one then starts from nothing.
define install
	@echo "Installing Refit into .venv, which takes a few minutes the first time."
	@if [ -e .venv/unfinished ]; then rm -rf .venv; fi
	@mkdir -p .venv && rm -f .venv/*.stamp && touch .venv/unfinished
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '$(1)'
	@rm .venv/unfinished
endef
