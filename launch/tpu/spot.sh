#!/usr/bin/env bash
# A run on spot TPUs to its end: creates, installs, runs, waits; where the TPU is taken away, deletes what is left of it, creates another
# and runs the same command again, which goes on from the last checkpoint. Deletes the TPU when all is over.
#
#   bash launch/tpu/spot.sh --name=NAME --zone=ZONE --accelerator-type=v5litepod-16 [--node-count=SLICES] [--copy=FILE ...] [--keep]
#       [--runtime-version=V] [--gcloud=FLAG ...] [--local-workdir] [--on-demand] [--timeout=MINUTES] [--poll=SECONDS]
#       [--max-failures=3] [--max-preemptions=50] -- --config=configs/hh_harmless.py --workdir=gs://BUCKET/hh [--config.SECTION.KEY=VALUE ...]
#
#   --keep              leaves the TPU at the end, where it goes on costing
#   --on-demand         not spot, and the same loop
#   --timeout           minutes to wait in the queue, each time; a day by default
#   --max-failures      ends with status 1 after so many failures of its own accord, be it the run's or of creating and installing
#   --max-preemptions   ... and after the TPU was taken away so often
#   the others          as in create.sh, install.sh and run.sh
#
# Ends with status 0 when the run has; at once with the run's message and status 2 when that says that the command is mistaken. Called again
# with the same flags, it takes up what it finds, a run under way too: Ctrl-C ends the loop and leaves the TPU.
# Cost: the TPU's while there is one. Time: the run's, and 10 minutes or more for every time that the TPU is taken away.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/_tpu.sh"
accelerator_type="" runtime_version="" local_workdir="" on_demand="" keep="" timeout=1440 poll=60 max_failures=3 max_preemptions=50
options "accelerator-type runtime-version local-workdir? on-demand? keep? timeout poll max-failures max-preemptions copy gcloud" "$@"
whole_number timeout poll max-failures max-preemptions
check_run "$local_workdir"
[ -n "$accelerator_type" ] || refuse "--accelerator-type is missing: v5litepod-16, v6e-64, v5p-64 ..."
creating=(--accelerator-type="$accelerator_type" --timeout="$timeout" --poll="$poll")
if [ -n "$runtime_version" ]; then creating+=(--runtime-version="$runtime_version"); fi
if [ -z "$on_demand" ]; then creating+=(--spot); fi
for flag in ${GCLOUD[@]+"${GCLOUD[@]}"}; do creating+=(--gcloud="$flag"); done
installing=(--poll="$poll")
for file in ${COPIES[@]+"${COPIES[@]}"}; do installing+=(--copy="$file"); done
running=(${local_workdir:+--local-workdir} -- "${REST[@]}")
failures=0 preemptions=0 ours=""
trap 'say "$name: left as it is, and costing: this command again takes it up, launch/tpu/delete.sh ends it"; exit 130' INT TERM

script() { bash "$here/$1.sh" --name="$name" "${where[@]}" --node-count="$node_count" "${@:2}"; }

look() { # sets seen: lost, unreachable, running, done, saved, mistake or failed; and report, the workers' lines
  state=$(tpu_state) report=""
  case $state in
    ACTIVE) report=$(worker_lines | grep '^worker ') || report="" ;;
    MISSING | FAILED | SUSPENDING | SUSPENDED | DELETING) seen=lost && return ;;
    NODE_MISSING | NODE_PREEMPTED | NODE_TERMINATED | NODE_STOP* | NODE_DELETING | NODE_HID*) seen=lost && return ;;
  esac
  if [ -z "$report" ]; then
    seen=unreachable
  elif grep -qE 'ended with status 2(:|$)' <<< "$report"; then
    seen=mistake
  elif grep -qE 'ended with status 143(:|$)' <<< "$report"; then
    seen=saved
  elif grep -qvE '(running|ended with status 0)$' <<< "$report"; then
    seen=failed
  elif grep -q 'running$' <<< "$report"; then
    seen=running
  else
    seen="done"
  fi
}

start() { # from whatever there is to a run under way
  local try=0
  look
  if [ "$seen" = lost ]; then
    if [ "$state" != MISSING ]; then script delete --poll="$poll" || return; fi
    ours=1
  fi
  script create "${creating[@]}" || return
  while look && [ "$seen" = unreachable ] && [ "$try" -lt 10 ]; do
    case $state in *UNKNOWN) ;; *) try=$((try + 1)) ;; esac
    pause "$state"
  done
  case $seen in
    lost | unreachable) return 1 ;;
    running) ;; # run.sh says whether it is this one
    *) script stop && script install "${installing[@]}" || return ;;
  esac
  script run "${running[@]}" || return
  ours=1
}

finish() { # STATUS
  if [ -n "$keep" ] || [ -z "$ours" ]; then
    say "$name: left as it is; launch/tpu/delete.sh ends what it costs"
  else
    script delete --poll="$poll" || warn "error: $name: not deleted, and costing; see to it: bash launch/tpu/delete.sh"
  fi
  exit "$1"
}

failed() { # WHAT
  failures=$((failures + 1))
  warn "$name: failure $failures of --max-failures=$max_failures: $1"
  if [ "$failures" -ge "$max_failures" ]; then
    warn "error: $name: given up; the same command goes on from the last checkpoint"
    finish 1
  fi
}

preempted() {
  preemptions=$((preemptions + 1))
  say "$name: $state; taken away, or stopped after saving ($preemptions of --max-preemptions=$max_preemptions); going on"
  if [ "$preemptions" -ge "$max_preemptions" ]; then
    warn "error: $name: taken away $preemptions times; the same command goes on from the last checkpoint"
    finish 1
  fi
}

while true; do
  status=0
  start || status=$?
  if [ "$status" -eq 2 ]; then finish 2; fi
  if [ "$status" -ne 0 ]; then
    look
    case $state in
      *UNKNOWN) ;; # no reason to give it up
      SUSPEND* | NODE_*) preempted ;;
      *) failed "it could not be started (status $status)" ;;
    esac
    pause "$state"
    continue
  fi

  silent=0
  while true; do
    look
    case $seen in
      running) silent=0 ;;
      unreachable) if [ "$state" = ACTIVE ]; then silent=$((silent + 1)); fi ;;
      *) break ;;
    esac
    if [ "$silent" -ge 10 ]; then
      warn "error: $name: ACTIVE, but no ssh to its workers; left as it is, and costing: this command again takes it up"
      exit 1
    fi
    pause "$state"
  done

  if [ "$seen" = saved ] || [ "$seen" = failed ]; then # one worker's end may be the first sign that the TPU is going
    before=$seen
    told=$report
    sleep "$poll"
    look
    if [ "$seen" != lost ]; then seen=$before report=$told; fi
  fi
  case $seen in
    done) say "$name: the run has ended with status 0" && finish 0 ;;
    mistake)
      told=$(sed -nE 's/^worker .*: ended with status 2: //p' <<< "$report" | head -n 1)
      echo "${told:-irl_jax: error: the run has ended with status 2, and no message; its log is in launch/tpu/logs.sh (with --keep)}" >&2
      finish 2
      ;;
    lost | saved) preempted ;;
    *)
      script logs --worker=all --lines=30 --no-follow >&2 || true
      failed "$(tr '\n' ' ' <<< "$report")"
      ;;
  esac
done
