#!/usr/bin/env bash
# The whole pipeline on the embedded testbed, from a fresh clone: bash launch/quickstart.sh [WORKDIR [more flags of `irl_jax run`]]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
case ${1:-} in
  --help | -h) script_help && exit 0 ;;
  -*) refuse "'$1': the first argument is the workdir, flags come behind it; see bash $0 --help" ;;
esac
workdir=${1:-$ROOT/runs/quickstart}
ensure_environment ""
"$PYTHON" -m irl_jax run --config="$ROOT/configs/testbed.py" --workdir="$workdir" "${@:2}"
echo "irl_jax: the report is $workdir/report/index.html"
