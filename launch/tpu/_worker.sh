#!/usr/bin/env bash
# On a worker; the scripts beside it call it through ssh: bash irl_jax/launch/tpu/_worker.sh VERB [ARGUMENTS]
#
#   idle                      status 2 and a line where a run is going on
#   install                   the environment, ~/irl_jax/.venv
#   run ARGUMENTS             starts `python -m irl_jax ARGUMENTS`, detached; nothing to do where just that runs already
#   status                    one line: running, ended with which status, or nothing
#   logs LINES follow|once    the last lines, and those to come
#   stop SECONDS              SIGTERM, and SIGKILL after so long
#
# A run leaves ~/irl_jax-run/{log,command,pid,born,status}. Cost and time: those of the scripts that call it.
set -euo pipefail
case ${1:---help} in --help | -h) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
runs=$HOME/irl_jax-run
host=$(hostname)
verb=$1
shift
mkdir -p "$runs"

born() { # born PID: the boot and the moment in it that the process began, which no later process of that number shares; fails where it ended
  local stat fields
  stat=$(cat "/proc/$1/stat" 2> /dev/null) || return
  read -ra fields <<< "${stat##*) }" # what stands before is the command's name, which may hold anything
  [ "${fields[0]}" != Z ] && echo "$(cat /proc/sys/kernel/random/boot_id) ${fields[19]}"
}

running() { # sets pid: the leader of the run's process group
  local since
  [ ! -e "$runs/status" ] && read -r pid 2> /dev/null < "$runs/pid" && since=$(born "$pid") && [ "$since" = "$(cat "$runs/born" 2> /dev/null)" ]
}

signal() { # signal NAME: to the run's process group, or to its leader where it has not made one yet
  if running; then kill "-$1" -- "-$pid" 2> /dev/null || kill "-$1" "$pid" 2> /dev/null || true; fi
}

wait_for_end() { # wait_for_end SECONDS; fails where the run goes on
  local fifth
  for ((fifth = 0; fifth < 10#$1 * 5; fifth++)); do
    running || return 0
    sleep 0.2
  done
  ! running
}

refuse_if_running() {
  if running; then
    echo "irl_jax: error: $host: a run is going on: $(cat "$runs/command"); end it (launch/tpu/stop.sh) or let it end" >&2
    exit 2
  fi
}

case $verb in run | stop) exec 9> "$runs/lock" && flock 9 ;; esac # two at once would see the same run, or none

case $verb in
  idle) refuse_if_running ;;
  install)
    export PATH="$HOME/.local/bin:$PATH"
    # shellcheck source=../_venv.sh
    source launch/_venv.sh
    if ! find_python > /dev/null 2>&1; then # runtimes of Ubuntu 22.04 have Python 3.10
      echo "irl_jax: $host: getting Python 3.12"
      python3 -m pip install --quiet --user 'uv>=0.9,<1'
      uv python install --quiet 3.12
      ln -sf "$(uv python find 3.12)" "$HOME/.local/bin/python3.12"
    fi
    ensure_environment tpu
    ;;
  run)
    command=$(printf ' %q' "$@")
    if running && [ "$command" = "$(cat "$runs/command")" ]; then
      echo "irl_jax: $host: that run is going on already"
      exit
    fi
    refuse_if_running
    rm -f "$runs/status"
    printf '%s\n' "$command" > "$runs/command"
    printf '\n== %s python -m irl_jax%s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "${command//$'\n'/ }" >> "$runs/log"
    # a session of its own; the trap lets the shell outlive the signals that tell Python to save, and write down how that ended
    # shellcheck disable=SC2016
    PYTHONUNBUFFERED=1 setsid bash -c '
      trap : TERM INT HUP
      status=0
      .venv/bin/python -m irl_jax "${@:2}" || status=$?
      echo "$status" > "$1/status.part"
      mv "$1/status.part" "$1/status"
    ' bash "$runs" "$@" < /dev/null >> "$runs/log" 2>&1 9>&- &
    born $! > "$runs/born" || true
    echo $! > "$runs/pid"
    echo "irl_jax: $host: started"
    ;;
  status)
    # the run's own message; only the last run's, which begins at the last line with ==
    message=$(awk '/^== /{said=""} /^irl_jax: error: /{said=": " $0} END{print said}' "$runs/log" 2> /dev/null || true)
    if running; then
      echo "worker $host: running"
    elif [ -e "$runs/status" ]; then
      echo "worker $host: ended with status $(cat "$runs/status")$message"
    elif [ -e "$runs/pid" ]; then
      echo "worker $host: lost its run, which left no status (killed, or the machine restarted)"
    else
      echo "worker $host: has run nothing"
    fi
    ;;
  logs)
    if [ ! -e "$runs/log" ]; then
      echo "$host: has run nothing"
      exit
    fi
    follow=()
    if [ "$2" = follow ] && running; then follow=(-F --pid="$pid"); fi
    tail -n "$1" ${follow[@]+"${follow[@]}"} "$runs/log" | sed -u "s/^/$host: /"
    ;;
  stop)
    if running; then
      signal TERM
      if ! wait_for_end "$1"; then
        signal KILL
        wait_for_end 10 || { echo "irl_jax: error: $host: the run could not be stopped" >&2 && exit 1; }
      fi
      echo "irl_jax: $host: stopped"
    fi
    ;;
  *) echo "irl_jax: error: _worker.sh: unknown verb '$verb'" >&2 && exit 2 ;;
esac
