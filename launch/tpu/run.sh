#!/usr/bin/env bash
# Starts `python -m irl_jax run --multihost ...` on all workers, detached: a lost connection does not end it.
#
#   bash launch/tpu/run.sh --name=NAME --zone=ZONE [--node-count=SLICES] [--local-workdir] \
#       -- --config=configs/hh_harmless.py --workdir=gs://BUCKET/hh [--config.SECTION.KEY=VALUE ...]
#
#   behind --         the flags of `irl_jax run`, passed on as they are; paths are those of the workers, whose current folder is ~/irl_jax
#   --local-workdir   allows a --workdir that is not gs://...: on a single host, or a disk that all workers share
#
# Then: launch/tpu/logs.sh, launch/tpu/status.sh, launch/tpu/stop.sh. The same command again goes on from the last checkpoint.
# Cost: nothing beyond the TPU's and the bucket's. Time: seconds; the run is over when status.sh says so.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_tpu.sh"
local_workdir=""
options "local-workdir?" "$@"
check_run "$local_workdir"
on_workers all "$(on_worker_script run run --multihost "${REST[@]}")"
