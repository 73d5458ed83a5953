# make demo     search a bit allocation for the embedded task, draw it, and export it to C where there is a compiler
# make test     lint and all tests
# make test-fast  quick tests of what has no torch in it, and of tracing
# make lint     ruff, mypy, and the order of the rooms (no import climbs)
# make clean    remove the environment and everything that tools left behind; searches and data stay
#
# Each target sets up .venv by itself, and only what changed since the last time.

PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
DEMO := runs/demo

# Those that need no evaluation of a network, and the capture of networks.
FAST_TESTS := tests/problem tests/support tests/hardware tests/report tests/tracing

# Small matrices, and a process on every core: more threads would only wait for each other.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo test test-fast lint setup clean

demo: setup
	@rm -rf $(DEMO)
	$(BIN)/amed search digits-cnn --device bitfusion --agent maskable-ppo --budget latency=0.35 \
		--evaluations 200 --seed 0 --out $(DEMO) $$(command -v cc >/dev/null && echo --export c)
	@echo "pictures: $(DEMO)/pareto.png (the trade-off), $(DEMO)/allocation.png (bits of every layer)"
	@if command -v cc >/dev/null; then echo "C of the network, compiled and compared: $(DEMO)/export"; fi

# A file's tests go to one worker, so that what they share (fixtures, captured networks) is made once.
test: lint
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-fast: setup
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q -m "not slow and not data" $(FAST_TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

setup:
	@PYTHON="$(PYTHON)" bash -c "$$SETUP"

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last and says what was installed, where, and with which Python. Without it .venv may be
# half-made, which pip does not always notice, so it is made anew.
define SETUP
set -eu
stamp=.venv/.installed
log=$$(mktemp)
trap 'rm -f "$$log"' EXIT

state() {
    { pwd; $(BIN)/python -VV; cat setup.cfg pyproject.toml constraints.txt amed_env/_version.py; } | cksum
}

works() {
    $(BIN)/python - 2>/dev/null <<'END'
from importlib.util import find_spec
raise SystemExit(not all(map(find_spec, ("amed_env", "gymnasium", "importlinter", "mypy", "pip", "pytest", "ruff", "torch"))))
END
}

fail() {
    if [ -s "$$log" ]; then cat "$$log" >&2; fi
    echo "setup failed: $$1" >&2
    exit 1
}

if [ -e "$$stamp" ] && works && [ "$$(cat "$$stamp")" = "$$(state)" ]; then exit 0; fi

make_venv() {
    rm -rf .venv
    "$$PYTHON" -m venv .venv && $(BIN)/python -m pip --version
} >"$$log" 2>&1

install_venv_package() {
    sudo=
    if [ "$$(id -u)" != 0 ]; then sudo=sudo; fi
    command -v apt-get && { [ -z "$$sudo" ] || command -v sudo; } || return 1
    install="$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y python3-venv"
    $$install || { $$sudo apt-get update && $$install; }
} >"$$log" 2>&1

new_venv() {
    "$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>"$$log" ||
        fail "'$$PYTHON' is no Python 3.11 or newer; name one: make PYTHON=python3.12"
    echo "setup: making .venv"
    make_venv && return
    if ! "$$PYTHON" -c 'import ensurepip' 2>/dev/null; then
        echo "setup: installing python3-venv, which this system keeps apart"
        install_venv_package ||
            fail "'$$PYTHON -m venv' needs ensurepip; run as root: apt-get install python3-venv"
        make_venv && return
    fi
    fail "'$$PYTHON -m venv .venv' does not work"
}

install() {
    version=$$(sed -n 's/^torch==//p' constraints.txt)
    pip="$(BIN)/python -m pip --disable-pip-version-check --no-input install -c constraints.txt"
    echo "setup: installing torch $$version"
    if ! $$pip "torch==$$version+cpu" >"$$log" 2>&1; then
        echo "setup: the CPU build of torch is not on offer here, taking the default build"
        $$pip "torch==$$version" >"$$log" 2>&1 || return 1
    fi
    echo "setup: installing amed-env with all that it needs"
    $$pip --editable '.[dev,search]' >"$$log" 2>&1 || return 1
    $(BIN)/python -c 'import gymnasium, torch' >"$$log" 2>&1
}

fresh=
if ! [ -e "$$stamp" ] || ! works; then
    fresh=yes
    new_venv
fi
rm -f "$$stamp"
if ! install; then
    if [ "$$fresh" ]; then fail "the packages above cannot be installed"; fi
    new_venv
    install || fail "the packages above cannot be installed"
fi
state >"$$stamp"
echo "setup: done"
endef
export SETUP
