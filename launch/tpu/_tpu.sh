# shellcheck shell=bash
# Sourced by the scripts beside it: their flags, the names of the nodes, gcloud's answers in one word, ssh to all workers.
#
# Every script takes --name=NAME --zone=ZONE [--project=PROJECT] [--node-count=SLICES]; where one is left out, the environment's
# IRL_JAX_TPU_NAME, IRL_JAX_TPU_ZONE, IRL_JAX_TPU_PROJECT or IRL_JAX_TPU_NODE_COUNT stands in. The queued resource is called NAME; so is
# its only node, and the nodes of several slices are NAME-0, NAME-1 and so on.

name=${IRL_JAX_TPU_NAME:-} zone=${IRL_JAX_TPU_ZONE:-} project=${IRL_JAX_TPU_PROJECT:-} node_count=${IRL_JAX_TPU_NODE_COUNT:-1}
COPIES=() GCLOUD=() # the values of --copy and of --gcloud, which may be given several times
REST=()             # what stands behind --
where=()            # --zone and --project, for gcloud
complaints=$(mktemp)
trap 'rm -f "$complaints"' EXIT

say() { printf 'irl_jax: %s\n' "${*//$'\n'/ }"; }

warn() { say "$@" >&2; }

fail() { # the user's mistake: one line, status 2
  warn "error: $*"
  exit 2
}

options() { # options "FLAGS" "$@": --some-flag=VALUE becomes $some_flag; FLAGS are the script's own, those without a value end in ?
  local known="name zone project node-count $1" argument flag value kind
  shift
  while [ $# -gt 0 ]; do
    argument=$1
    shift
    case $argument in
      --) REST=("$@") && break ;;
      --help | -h) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;;
      --?*=*) flag=${argument%%=*} value=${argument#*=} kind="" ;;
      --?*) flag=$argument value=1 kind="?" ;;
      *) fail "unexpected argument '$argument'; see bash $0 --help" ;;
    esac
    case " $known " in
      *" ${flag#--}$kind "*) ;;
      *" ${flag#--} "*) fail "$flag: write it as $flag=VALUE" ;;
      *" ${flag#--}? "*) fail "$flag: takes no value" ;;
      *) fail "unknown flag '$flag'; the flags are --$(sed 's/?//g; s/  */, --/g' <<< "${known% }")" ;;
    esac
    case $flag in
      --copy) COPIES+=("$value") ;;
      --gcloud) GCLOUD+=("$value") ;;
      *) flag=${flag#--} && printf -v "${flag//-/_}" %s "$value" ;;
    esac
  done
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name='$name': give the TPU a name of lower-case letters, digits and hyphens"
  [[ $zone =~ ^[a-z]+-[a-z0-9]+-[a-z]$ ]] || fail "--zone='$zone': give a zone, such as us-west4-a"
  whole_number --node-count "$node_count"
  [ "$node_count" -ge 1 ] || fail "--node-count=$node_count: at least 1"
  for value in ${COPIES[@]+"${COPIES[@]}"}; do [ -e "$value" ] || fail "--copy=$value: no such file"; done
  command -v gcloud > /dev/null || fail "gcloud is not on the PATH; install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install)"
  where=(--zone="$zone")
  [ -z "$project" ] || where+=(--project="$project")
}

check_run() { # what can be refused of `irl_jax run`'s flags, behind --, before anything costs money
  local argument workdir=""
  [ ${#REST[@]} -gt 0 ] || fail "nothing to run: put the flags of \`irl_jax run\` behind --, such as -- --workdir=gs://BUCKET/hh"
  for argument in "${REST[@]}"; do
    case $argument in --workdir=*) workdir=${argument#*=} ;; esac
  done
  [ -n "$workdir" ] || fail "--workdir=gs://BUCKET/FOLDER is missing behind --"
  [[ -n $1 || $workdir == gs://?* ]] || fail "--workdir=$workdir: not gs://..., which all workers see; --local-workdir allows it"
}

whole_number() { # FLAG VALUE
  [[ $2 =~ ^[0-9]{1,7}$ ]] || fail "$1='$2': must be a whole number"
}

nodes() {
  if [ "$node_count" -eq 1 ]; then echo "$name"; else seq -f "$name-%g" 0 $((node_count - 1)); fi
}

described() { # described queued-resources|tpu-vm NAME FORMAT: gcloud's answer; MISSING; UNKNOWN where it could not say, with why on stderr
  local answer
  if answer=$(gcloud compute tpus "$1" describe "$2" "${where[@]}" --format="value($3)" 2> "$complaints" < /dev/null); then
    echo "${answer:-UNKNOWN}"
  elif grep -qiE 'NOT_FOUND|not found' "$complaints"; then
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
  on_workers all 'bash irl_jax/launch/tpu/_worker.sh status 2> /dev/null || echo "worker $(hostname): has run nothing"'
}
