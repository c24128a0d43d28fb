#!/usr/bin/env bash
# Ends the run on all workers: SIGTERM, on which it saves, and SIGKILL where that takes too long. The TPU stays, and costs.
#
#   bash launch/tpu/stop.sh --name=NAME --zone=ZONE [--node-count=SLICES] [--grace=SECONDS]
#
# Cost: nothing. Time: until the checkpoint is written, --grace=120 seconds at most. Harmless where nothing runs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_tpu.sh"
grace=120
options "grace" "$@"
whole_number grace
on_workers all "test ! -f irl_jax/launch/tpu/_worker.sh || $(on_worker_script stop "$grace")"
