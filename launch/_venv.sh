# shellcheck shell=bash
# Sourced by the scripts beside it: `ensure_environment EXTRAS` makes $ROOT/.venv and installs irl_jax with its pinned dependencies
# and the extras ("" or "test" or "test,torch"). What is there already is left alone: a stamp keyed by what was installed says so.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON="$ROOT/.venv/bin/python"

script_help() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; } # the comment at the top of the script that runs

refuse() { # one line of the user's mistake, status 2
  printf 'irl_jax: error: %s\n' "${*//$'\n'/ }" >&2
  exit 2
}

check_flags() { # check_flags "FLAGS" "$@": answers --help, and refuses any flag that is none of FLAGS
  local known=" $1 " argument
  shift
  for argument in "$@"; do
    case $argument in
      --help | -h) script_help && echo "The flags: ${known//  / }" && exit 0 ;;
      -*) [[ $known == *" ${argument%%=*} "* ]] || refuse "unknown flag '${argument%%=*}'; see bash $0 --help" ;;
    esac
  done
}

find_python() {
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "irl_jax: error: no Python 3.11 or newer with its venv module was found; install one (on Debian: python3 and python3-venv)" >&2
  return 2
}

fingerprint() { # of the python, the place, the pins and the extras
  "$PYTHON" - "$ROOT" "$1" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
parts = [sys.version, *sys.argv[1:], (root / "setup.py").read_text(), (root / "launch" / "constraints.txt").read_text()]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PY
}

ensure_environment() {
  local extras=$1 base stamp
  stamp="$ROOT/.venv/.installed-${extras:-default}"
  if ! "$PYTHON" -c '' 2>/dev/null; then
    base=$(find_python) || return
    echo "irl_jax: making $ROOT/.venv with $("$base" --version)"
    "$base" -m venv --clear "$ROOT/.venv" || return
  fi
  if [ "$(cat "$stamp" 2>/dev/null)" != "$(fingerprint "$extras")" ]; then
    echo "irl_jax: installing pinned dependencies${extras:+ and the extras $extras} (some minutes, once)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -c "$ROOT/launch/constraints.txt" -e "$ROOT${extras:+[$extras]}" || return
    fingerprint "$extras" > "$stamp"
  fi
}
