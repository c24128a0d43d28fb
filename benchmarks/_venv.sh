# shellcheck shell=bash
# Sourced by run.sh and gpu.sh: `ensure_peers` makes $ROOT/benchmarks/.venv, the environment of the comparisons.
# IRL_JAX_BENCHMARK_VENV names another folder (or an environment that holds everything already), IRL_JAX_BENCHMARK_EXTRAS extras of
# irl_jax, such as cuda.

source "$(dirname "${BASH_SOURCE[0]}")/../launch/_venv.sh"
VENV=${IRL_JAX_BENCHMARK_VENV:-$ROOT/benchmarks/.venv}
PYTHON="$VENV/bin/python"

known_flags() { # known_flags run|gpu: those that the program behind the script takes
  sed -nE 's/.*add_argument\("(--[a-z_]+)".*/\1/p' "$ROOT/benchmarks/speed/$1.py" | tr '\n' ' '
}

ensure_peers() {
  local base wanted stamp="$VENV/.installed" extras=${IRL_JAX_BENCHMARK_EXTRAS:-}
  local here="$ROOT/benchmarks" pip=("$PYTHON" -m pip install --quiet --disable-pip-version-check -c "$ROOT/launch/constraints.txt")
  if ! "$PYTHON" -c '' 2>/dev/null; then
    base=$(find_python) || return
    echo "benchmarks: making $VENV with $("$base" --version)"
    "$base" -m venv --clear "$VENV" || return
  fi
  wanted=$(cat "$ROOT/setup.py" "$ROOT/launch/constraints.txt" "$here/requirements.txt" "$here/requirements-alone.txt" <(echo "$extras") | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "benchmarks: installing irl_jax and its peers (some minutes, once)"
    "${pip[@]}" torch==2.13.0 || return # first and alone: what follows must find it there, not choose another build
    "${pip[@]}" -r "$here/requirements.txt" -e "$ROOT${extras:+[$extras]}" || return
    "${pip[@]}" --no-deps -r "$here/requirements-alone.txt" || return
    echo "$wanted" > "$stamp"
  fi
}
