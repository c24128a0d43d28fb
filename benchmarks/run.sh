#!/usr/bin/env bash
# irl_jax beside its peers, case by case: bash benchmarks/run.sh [--quick] [--cases=A,B] [--sizes=A,B] [--repeats=N] [--model=DIR] ...
# (--help lists them all). Makes benchmarks/.venv first: this package with torch, transformers, trl and google-tunix, pinned.
# About an hour on 2 idle cores, a few minutes with --quick. Prints the table and writes benchmarks/results.json and docs/sampling_speed.png.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
check_flags "$(known_flags run)" "$@"
ensure_peers
cd "$ROOT"
exec "$PYTHON" -m benchmarks.speed.run "$@"
