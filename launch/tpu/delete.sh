#!/usr/bin/env bash
# Deletes the TPU, and with it everything on its workers' disks; what lies in a bucket stays. Harmless where there is none.
#
#   bash launch/tpu/delete.sh --name=NAME --zone=ZONE [--node-count=SLICES] [--timeout=MINUTES] [--poll=SECONDS]
#
# Cost: none, and the TPU's ends. Time: 1 to 5 minutes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_tpu.sh"
timeout=20 poll=15
options "timeout poll" "$@"
whole_number --timeout "$timeout"
whole_number --poll "$poll"
asked=""
while true; do
  state=$(resource_state)
  case $state in
    MISSING) break ;;
    DELETING | UNKNOWN) ;;
    *)
      say "$name: $state; deleting it"
      if gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet < /dev/null; then asked=1; fi
      if [ "$(resource_state)" = MISSING ]; then break; fi
      ;;
  esac
  if [ "$SECONDS" -ge $((timeout * 60)) ]; then
    warn "error: $name: still $state after --timeout=$timeout minutes; it may go on costing: see gcloud compute tpus queued-resources list"
    exit 1
  fi
  sleep "$poll"
done
for node in $(nodes); do # one that its queued resource left behind
  case $(described tpu-vm "$node" state) in
    MISSING | UNKNOWN | DELETING) ;;
    *) gcloud compute tpus tpu-vm delete "$node" "${where[@]}" --quiet < /dev/null && asked=1 ;;
  esac
done
say "$name: ${asked:+deleted; }nothing of it is left in $zone"
