#!/usr/bin/env bash
# The test suite in its own environment: bash launch/test.sh [pytest's arguments]
#   --help                  says this; all other arguments are pytest's
#   IRL_JAX_TEST_TORCH=1    installs torch for the comparisons with it (otherwise they are skipped)
#   IRL_JAX_TEST_WORKERS=N  processes (default 2; 0 runs in one, as a debugger needs)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
case ${1:-} in --help | -h) script_help && exit 0 ;; esac
extras="test"
if [ "${IRL_JAX_TEST_TORCH:-0}" = 1 ]; then extras=test,torch; fi
ensure_environment "$extras"
cd "$ROOT"
exec "$PYTHON" -m pytest -n "${IRL_JAX_TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder "$@"
