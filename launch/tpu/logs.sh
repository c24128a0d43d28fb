#!/usr/bin/env bash
# Follows the run's log until the run ends (or Ctrl-C, which ends the following alone).
#
#   bash launch/tpu/logs.sh --name=NAME --zone=ZONE [--node-count=SLICES] [--worker=0|1|...|all] [--lines=N] [--no-follow]
#
#   --worker   0 by default, where the progress is told; with several slices, that worker of each
#   --lines    so many of the last lines first; 100 by default
#
# Each line begins with its worker's host name. Cost: nothing. Time: as long as the run, with --no-follow seconds.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_tpu.sh"
worker=0 lines=100 no_follow=""
options "worker lines no-follow?" "$@"
[ "$worker" = all ] || whole_number worker
whole_number lines
on_workers "$worker" "$(on_worker_script logs "$lines" "${no_follow:-follow}")"
