#!/usr/bin/env bash
# The whole pipeline on the embedded testbed, from a fresh clone: bash launch/quickstart.sh [WORKDIR [more flags of `irl_jax run`]]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
workdir=${1:-$ROOT/runs/quickstart}
ensure_environment ""
"$PYTHON" -m irl_jax run --config="$ROOT/configs/testbed.py" --workdir="$workdir" "${@:2}"
echo "irl_jax: the report is $workdir/report/index.html"
