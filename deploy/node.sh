#!/usr/bin/env bash
# Starts Ray on this machine, as a node of a cluster that requires a token.
#   deploy/node.sh head [options of `ray start`]
#   deploy/node.sh worker HEAD:6379 --resources='{"rollout": 8}'
# The token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, the same on every machine
# (`ray get-auth-token --generate` makes one). A token in a command line can be read by every user of the machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stop() { echo "node: $*" >&2; exit 2; }
if [[ -z ${RAY_AUTH_TOKEN:-} && ! -s ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token} ]]; then
    stop "no token: set RAY_AUTH_TOKEN, or put one into ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" \
        "(\`ray get-auth-token --generate\` on one machine, then the same file on all)"
fi
export RAY_AUTH_MODE=token
# Seconds that `ray job stop` waits for a run to write its checkpoint before it kills the driver; jobs inherit it.
export RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-3600}
# Actors without a Ray GPU see the node's devices; a later version of Ray makes this the default.
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0

# Jobs call `python`, which must be the Python of Duet's environment.
[[ -d .venv/bin ]] && PATH=$PWD/.venv/bin:$PATH
case ${1:-} in
    head)
        shift
        exec ray start --head --port=6379 --disable-usage-stats "$@"
        ;;
    worker)
        [[ ${2:-} == *:* ]] || stop "worker needs the head's address, HOST:6379"
        address=$2
        shift 2
        exec ray start --address="$address" --disable-usage-stats "$@"
        ;;
    *) stop "the first argument must be head or worker, not '${1:-}'" ;;
esac
