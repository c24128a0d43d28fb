# shellcheck shell=bash
# Sourced by the scripts beside it: their flags, the names of the nodes, gcloud's answers in one word, ssh to all workers.
#
# Every script takes --name=NAME --zone=ZONE [--project=PROJECT] [--node-count=SLICES]; where one is left out, the environment's
# IRL_JAX_TPU_NAME, IRL_JAX_TPU_ZONE, IRL_JAX_TPU_PROJECT or IRL_JAX_TPU_NODE_COUNT stands in. The queued resource is called NAME; so is
# its only node, and the nodes of several slices are NAME-0, NAME-1 and so on.

source "$(dirname "${BASH_SOURCE[0]}")/../_venv.sh"
name=${IRL_JAX_TPU_NAME:-} zone=${IRL_JAX_TPU_ZONE:-} project=${IRL_JAX_TPU_PROJECT:-} node_count=${IRL_JAX_TPU_NODE_COUNT:-1}
poll=15             # seconds between two looks
COPIES=() GCLOUD=() # the values of --copy and of --gcloud, which may be given several times
REST=()             # what stands behind --
where=()            # --zone and --project, for gcloud
complaints=$(mktemp)
trap 'rm -f "$complaints"' EXIT

say() { printf 'irl_jax: %s\n' "${*//$'\n'/ }"; }

warn() { say "$@" >&2; }

options() { # options "FLAGS" "$@": --some-flag=VALUE becomes $some_flag; FLAGS are the script's own, those without a value end in ?
  local known="name zone project node-count $1" argument flag value kind
  shift
  while [ $# -gt 0 ]; do
    argument=$1
    shift
    case $argument in
      --) REST=("$@") && break ;;
      --help | -h) script_help && exit 0 ;;
      --?*=*) flag=${argument%%=*} value=${argument#*=} kind="" ;;
      --?*) flag=$argument value=1 kind="?" ;;
      *) refuse "unexpected argument '$argument'; see bash $0 --help" ;;
    esac
    case " $known " in
      *" ${flag#--}$kind "*) [[ $flag != *\ * ]] || refuse "unknown flag '$flag'" ;;
      *" ${flag#--} "*) refuse "$flag: write it as $flag=VALUE" ;;
      *" ${flag#--}? "*) refuse "$flag: takes no value" ;;
      *) refuse "unknown flag '$flag'; the flags are --$(sed 's/?//g; s/  */, --/g' <<< "${known% }")" ;;
    esac
    case $flag in
      --copy) COPIES+=("$(local_path "$value")") ;;
      --gcloud) GCLOUD+=("$value") ;;
      *) flag=${flag#--} && printf -v "${flag//-/_}" %s "$value" ;;
    esac
  done
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || refuse "--name='$name': give the TPU a name of lower-case letters, digits and hyphens"
  [[ $zone =~ ^[a-z]+-[a-z0-9]+-[a-z]$ ]] || refuse "--zone='$zone': give a zone, such as us-west4-a"
  whole_number node-count
  [ "$node_count" -ge 1 ] && [ "$node_count" -le 1000 ] || refuse "--node-count=$node_count: at least 1, at most 1000"
  for value in ${COPIES[@]+"${COPIES[@]}"}; do [ -e "$value" ] || refuse "--copy=$value: no such file"; done
  command -v gcloud > /dev/null || refuse "gcloud is not on the PATH; install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install)"
  where=(--zone="$zone")
  [ -z "$project" ] || where+=(--project="$project")
}

check_run() { # what can be refused of `irl_jax run`'s flags, behind --, before anything costs money
  local argument workdir=""
  [ ${#REST[@]} -gt 0 ] || refuse "nothing to run: put the flags of \`irl_jax run\` behind --, such as -- --workdir=gs://BUCKET/hh"
  for argument in "${REST[@]}"; do
    case $argument in --workdir=*) workdir=${argument#*=} ;; esac
  done
  [ -n "$workdir" ] || refuse "--workdir=gs://BUCKET/FOLDER is missing behind --"
  [[ -n $1 || $workdir == gs://?* ]] || refuse "--workdir=$workdir: not gs://..., which all workers see; --local-workdir allows it"
}

whole_number() { # FLAG...: checks each, and writes its variable without leading zeros, which bash would read as octal
  local flag variable
  for flag; do
    variable=${flag//-/_}
    [[ ${!variable} =~ ^[0-9]{1,7}$ ]] || refuse "--$flag='${!variable}': must be a whole number"
    printf -v "$variable" %d "$((10#${!variable}))"
  done
}

local_path() { # PATH: one that gcloud takes for no flag and for no worker's file
  case $1 in /*) echo "$1" ;; -* | *:*) echo "./$1" ;; *) echo "$1" ;; esac
}

nodes() {
  if [ "$node_count" -eq 1 ]; then echo "$name"; else seq -f "$name-%g" 0 $((node_count - 1)); fi
}

described() { # described queued-resources|tpu-vm NAME FORMAT: gcloud's answer; MISSING; UNKNOWN where it could not say, with why on stderr
  local answer kind=nodes missing
  if [ "$1" = queued-resources ]; then kind=queuedResources; fi
  # MISSING is this very resource alone: a project, a zone or a right that is not found says nothing about what goes on costing
  missing="^ERROR: (\(gcloud[a-z.-]*\) )?NOT_FOUND: (Resource '?projects/[^/]+/locations/$zone/$kind/$2'?|Requested entity) was not found"
  if answer=$(gcloud compute tpus "$1" describe "$2" "${where[@]}" --format="value($3)" 2> "$complaints" < /dev/null) && [ -n "$answer" ]; then
    echo "$answer"
  elif grep -qE "$missing" "$complaints"; then
    echo MISSING
  else
    warn "gcloud cannot tell how $2 is: $(cat "$complaints")"
    echo UNKNOWN
  fi
}

resource_state() { described queued-resources "$name" state.state; }

tpu_state() { # ACTIVE where the queued resource is and all its nodes are READY; else its state, or NODE_ and the first other node's
  local state node
  state=$(resource_state)
  if [ "$state" = ACTIVE ]; then
    for node in $(nodes); do
      state=$(described tpu-vm "$node" state)
      if [ "$state" != READY ]; then echo "NODE_$state" && return; fi
    done
    state=ACTIVE
  fi
  echo "$state"
}

unknown=0
pause() { # pause STATE: --poll seconds; where gcloud could not tell, twice as long each time in a row, up to 16 times that
  case $1 in UNKNOWN | NODE_UNKNOWN) unknown=$((unknown < 5 ? unknown + 1 : 5)) ;; *) unknown=0 ;; esac
  local seconds=$((unknown ? poll << (unknown - 1) : poll))
  if [ "$unknown" -gt 0 ]; then warn "$name: asking again in $seconds seconds"; fi
  sleep "$seconds"
}

on_workers() { # on_workers WORKER COMMAND: at once on WORKER (a number, or all) of each slice; the status of one that failed, if any did
  local node status=0 process processes=()
  for node in $(nodes); do
    gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker="$1" --quiet --command="$2" < /dev/null &
    processes+=($!)
  done
  for process in "${processes[@]}"; do wait "$process" || status=$?; done
  return "$status"
}

to_workers() { # to_workers DESTINATION FILE...: onto all workers of each slice
  local node destination=$1
  shift
  for node in $(nodes); do
    gcloud compute tpus tpu-vm scp --recurse "$@" "$node:$destination" "${where[@]}" --worker=all --quiet < /dev/null
  done
}

on_worker_script() { # the command line that runs a verb of _worker.sh; every argument arrives as it is
  printf 'bash irl_jax/launch/tpu/_worker.sh'
  printf ' %q' "$@"
}

worker_lines() { # what each worker's run is doing
  # shellcheck disable=SC2016
  on_workers all 'if [ -e irl_jax/launch/tpu/_worker.sh ]; then bash irl_jax/launch/tpu/_worker.sh status
else echo "worker $(hostname): has run nothing"; fi'
}
