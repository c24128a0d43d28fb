#!/usr/bin/env bash
# Brings a run's results here: the report and results.json, or everything.
#
#   bash launch/tpu/fetch.sh --workdir=gs://BUCKET/hh --to=FOLDER [--everything]
#   bash launch/tpu/fetch.sh --name=NAME --zone=ZONE --workdir=runs/hh --to=FOLDER [--everything]      from worker 0's disk
#
#   --everything   checkpoints and samples too: gigabytes
#
# Cost: egress out of the bucket's region, cents for a report and some tens of cents a 10 GB of checkpoints. Time: seconds to minutes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_tpu.sh"
workdir="" to="" everything=""
case " $* " in *" --workdir=gs://"*) name=${name:-none} zone=${zone:-none-none-a} ;; esac # no TPU is needed for a bucket
options "workdir to everything?" "$@"
[ -n "$workdir" ] || refuse "--workdir is missing: gs://BUCKET/FOLDER, or a folder of worker 0"
[ -n "$to" ] || refuse "--to is missing: the folder here that the results go to"
workdir=${workdir%/} to=$(local_path "$to")
mkdir -p "$to" 2> /dev/null || refuse "--to=$to: cannot be made a folder"
if [ "${workdir#gs://}" != "$workdir" ]; then
  if [ -n "$everything" ]; then
    gcloud storage rsync --recursive "$workdir" "$to"
  else
    mkdir -p "$to/report"
    gcloud storage rsync --recursive "$workdir/report" "$to/report"
    gcloud storage cp "$workdir/results.json" "$to/results.json"
  fi
else
  node=$(nodes | head -n 1)
  case $workdir in /*) ;; *) workdir=irl_jax/$workdir ;; esac
  if [ -n "$everything" ]; then sources=("$node:$workdir"); else sources=("$node:$workdir/report" "$node:$workdir/results.json"); fi
  gcloud compute tpus tpu-vm scp --recurse "${sources[@]}" "$to/" "${where[@]}" --worker=0 --quiet
fi
say "fetched into $to"
