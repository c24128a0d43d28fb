#!/usr/bin/env bash
# Deletes the TPU, and with it everything on its workers' disks; what lies in a bucket stays. Harmless where there is none.
#
#   bash launch/tpu/delete.sh --name=NAME --zone=ZONE [--node-count=SLICES] [--timeout=MINUTES] [--poll=SECONDS]
#
# Cost: none, and the TPU's ends. Time: 1 to 5 minutes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_tpu.sh"
timeout=20
options "timeout poll" "$@"
whole_number timeout poll

there() { # the first of what is there still, as "queued-resources|tpu-vm NAME STATE"; nothing where all is gone for certain
  local node state
  state=$(resource_state)
  if [ "$state" != MISSING ]; then echo "queued-resources $name $state" && return; fi
  for node in $(nodes); do # one that its queued resource left behind
    state=$(described tpu-vm "$node" state)
    if [ "$state" != MISSING ]; then echo "tpu-vm $node $state" && return; fi
  done
}

asked=""
while true; do
  read -r kind what state <<< "$(there)"
  if [ -z "$kind" ]; then break; fi
  case $state in
    DELETING | UNKNOWN) ;;
    *)
      say "$what: $state; deleting it"
      if [ "$kind" = queued-resources ]; then force=(--force); else force=(); fi
      if gcloud compute tpus "$kind" delete "$what" "${where[@]}" ${force[@]+"${force[@]}"} --quiet < /dev/null; then
        # it is gone as a rule, and there is nothing to wait for
        if [ "$asked" != "$what" ]; then asked=$what && continue; fi
      fi
      ;;
  esac
  if [ "$SECONDS" -ge $((timeout * 60)) ]; then
    warn "error: $what: still $state after --timeout=$timeout minutes; it may go on costing: see gcloud compute tpus queued-resources list"
    exit 1
  fi
  pause "$state"
done
say "$name: ${asked:+deleted; }nothing of it is left in $zone"
