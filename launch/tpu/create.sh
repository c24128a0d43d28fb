#!/usr/bin/env bash
# Asks for a TPU (a queued resource) and waits until it is there.
#
#   bash launch/tpu/create.sh --name=NAME --zone=ZONE --accelerator-type=v5litepod-16 [--spot] [--node-count=SLICES]
#                             [--runtime-version=V] [--timeout=MINUTES] [--poll=SECONDS] [--gcloud=FLAG ...]
#
#   --accelerator-type   v5litepod-16, v6e-64, v5p-64 ...; --runtime-version follows from it where it is left out
#   --spot               cheaper, and may be taken away at any moment; without it: on demand
#   --node-count         more than one: that many slices (multi-slice)
#   --timeout            how long to wait, 60 minutes by default; the request stays in the queue after that
#   --gcloud             a further flag of `gcloud compute tpus queued-resources create`: --gcloud=--network=N --gcloud=--reserved ...
#
# Cost: from the moment it is ACTIVE until launch/tpu/delete.sh, whether anything runs or not; waiting in the queue is free.
# Time: minutes where there is capacity; spot may wait for hours. Called again, it goes on waiting for the same request.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_tpu.sh"
accelerator_type="" runtime_version="" spot="" timeout=60
options "accelerator-type runtime-version spot? timeout poll gcloud" "$@"
whole_number timeout poll
case ${runtime_version:+given}$accelerator_type in
  "" | given) refuse "--accelerator-type is missing: v5litepod-16, v6e-64, v5p-64 ..." ;;
  given*) ;;
  v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
  v6e-*) runtime_version=v2-alpha-tpuv6e ;;
  v5p-*) runtime_version=v2-alpha-tpuv5 ;;
  v4-*) runtime_version=tpu-ubuntu2204-base ;;
  *) refuse "--accelerator-type=$accelerator_type: unknown here; give its --runtime-version too" ;;
esac

flags=("${where[@]}" --accelerator-type="$accelerator_type" --runtime-version="$runtime_version" --quiet)
if [ "$node_count" -eq 1 ]; then flags+=(--node-id="$name"); else flags+=(--node-count="$node_count" --node-prefix="$name"); fi
if [ -n "$spot" ]; then flags+=(--spot); fi

before="" asked=""
while true; do
  state=$(resource_state)
  if [ "$state" = MISSING ] && [ -z "$asked" ]; then
    say "$name: asking for $node_count x $accelerator_type in $zone (${spot:+spot, }$runtime_version)"
    gcloud compute tpus queued-resources create "$name" "${flags[@]}" ${GCLOUD[@]+"${GCLOUD[@]}"} < /dev/null
    asked=1
    continue
  fi
  if [ "$state" != "$before" ]; then
    minutes="after $((SECONDS / 60)) minutes"
    case $state in
      ACTIVE) say "$name: ACTIVE $minutes; it costs money from now on, until launch/tpu/delete.sh" && exit 0 ;;
      FAILED | SUSPENDING | SUSPENDED) warn "error: $name: $state $minutes; delete it (launch/tpu/delete.sh) and ask again" && exit 1 ;;
      MISSING) warn "error: $name: the request is gone; somebody deleted it" && exit 1 ;;
      WAITING_FOR_RESOURCES | ACCEPTED) say "$name: $state: in the queue until there is capacity" ;;
      CREATING | PROVISIONING) say "$name: $state: the machines are being made" ;;
      *) say "$name: $state" ;;
    esac
    before=$state
  fi
  if [ "$SECONDS" -ge $((timeout * 60)) ]; then
    warn "error: $name: still $state after --timeout=$timeout minutes; call again to wait on, or launch/tpu/delete.sh"
    exit 1
  fi
  pause "$state"
done
