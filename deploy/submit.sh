#!/usr/bin/env bash
# Submits `duet train` as a job to a running Ray cluster and follows its output; arguments are those of `duet train`.
#   RAY_ADDRESS=http://HEAD:8265 deploy/submit.sh --config configs/gpu-cluster.yaml run.name=first
#   RAY_ADDRESS=http://HEAD:8265 deploy/submit.sh --resume /shared/runs/first
# Environment: RAY_AUTH_MODE=token and the cluster's token, as for deploy/node.sh; NO_WAIT=1 submits and returns;
# RAY_JOB_STOP_WAIT_TIME_S, seconds that `ray job stop` gives the run to end in order (default 3600; it takes no longer
# than the run needs).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z ${RAY_ADDRESS:-} ]]; then
    echo "submit: set RAY_ADDRESS to the cluster's dashboard, for instance http://HEAD:8265" >&2
    exit 2
fi
patience=${RAY_JOB_STOP_WAIT_TIME_S:-3600}
if ! [[ $patience =~ ^[1-9][0-9]*$ ]]; then
    echo "submit: RAY_JOB_STOP_WAIT_TIME_S is '$patience'; a whole number of seconds is needed" >&2
    exit 2
fi
ray=.venv/bin/ray
[[ -x $ray ]] || ray=ray

# Every worker gets a copy of the working directory; what .gitignore and .rayignore name stays here as well. The
# dashboard refuses an upload of more than 100 MiB. The variable is read by Ray's supervisor of the job, which has the
# job's environment; without it the supervisor kills the driver three seconds after the signal.
environment='{"excludes": [".git", ".venv", "runs"], "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "'$patience'"}}'
options=()
[[ -z ${NO_WAIT:-} ]] || options+=(--no-wait)
exec "$ray" job submit "${options[@]}" --working-dir . --runtime-env-json "$environment" -- \
    python -m duet train "$@"
