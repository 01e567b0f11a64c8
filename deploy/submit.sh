#!/usr/bin/env bash
# Submits `duet train` as a job to a running Ray cluster and follows its output; arguments are those of `duet train`.
#   RAY_ADDRESS=http://HEAD:8265 deploy/submit.sh --config configs/gpu-cluster.yaml run.name=first
#   RAY_ADDRESS=http://HEAD:8265 deploy/submit.sh --resume /shared/runs/first
# Environment: RAY_AUTH_MODE=token and the cluster's token, as for deploy/node.sh; NO_WAIT=1 submits and returns;
# RAY_JOB_STOP_WAIT_TIME_S, seconds that `ray job stop` waits for the run to end (default 3600; it returns as soon as the
# run has ended).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z ${RAY_ADDRESS:-} ]]; then
    echo "submit: set RAY_ADDRESS to the cluster's dashboard, for example http://HEAD:8265" >&2
    exit 2
fi
stop_timeout_s=${RAY_JOB_STOP_WAIT_TIME_S:-3600}
if ! [[ $stop_timeout_s =~ ^[1-9][0-9]*$ ]]; then
    echo "submit: RAY_JOB_STOP_WAIT_TIME_S is '$stop_timeout_s'; set a whole number of seconds above 0" >&2
    exit 2
fi
ray=.venv/bin/ray
[[ -x $ray ]] || ray=ray

# Every worker gets a copy of the working directory, without the files that .gitignore and .rayignore name. The dashboard
# refuses an upload of more than 100 MiB. Ray's supervisor of the job reads the variable; without it the supervisor kills
# the driver three seconds after the signal.
environment='{"excludes": [".git", ".venv", "runs"], "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "'$stop_timeout_s'"}}'
options=()
[[ -z ${NO_WAIT:-} ]] || options+=(--no-wait)
exec "$ray" job submit "${options[@]}" --working-dir . --runtime-env-json "$environment" -- \
    python -m duet train "$@"
