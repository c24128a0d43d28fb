#!/usr/bin/env bash
# What the TPU and the run on each of its workers are doing: one line each.
#
#   bash launch/tpu/status.sh --name=NAME --zone=ZONE [--node-count=SLICES]
#
# A run's status: 0 finished, 2 a mistake of the user's (its message follows), 143 stopped after saving (go on with the same command),
# anything else a failure (launch/tpu/logs.sh). Cost: nothing. Time: seconds.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_tpu.sh"
options "" "$@"
state=$(tpu_state)
say "$name: $state"
if [ "$state" != ACTIVE ]; then exit 1; fi
worker_lines
