#!/usr/bin/env bash
# Submits `duet train` as a job to a running Ray cluster; arguments are those of `duet train`.
#   RAY_ADDRESS=http://HEAD:8265 deploy/submit.sh --config configs/playground.yaml
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z ${RAY_ADDRESS:-} ]]; then
    echo "submit: set RAY_ADDRESS to the cluster's dashboard, for instance http://HEAD:8265" >&2
    exit 2
fi
ray=.venv/bin/ray
[[ -x $ray ]] || ray=ray

# Every worker gets a copy of the working directory; what .gitignore and .rayignore name stays here as
# well. The dashboard refuses an upload of more than 100 MiB.
excludes='{"excludes": [".git", ".venv", "runs"]}'
exec "$ray" job submit --working-dir . --runtime-env-json "$excludes" -- python -m controller train "$@"
