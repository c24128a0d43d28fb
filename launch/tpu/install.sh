#!/usr/bin/env bash
# Puts this checkout onto all workers, as ~/irl_jax, and installs it in ~/irl_jax/.venv with the pinned dependencies and the extra `tpu`.
#
#   bash launch/tpu/install.sh --name=NAME --zone=ZONE [--node-count=SLICES] [--copy=FILE ...]
#
#   --copy   a file or folder that git does not have, such as demonstrations.jsonl: it comes to lie in ~/irl_jax, where runs start
#
# What git tracks travels as it stands, uncommitted changes too; untracked files stay here, and a line names them.
# Cost: nothing beyond the TPU's. Time: 3 to 5 minutes the first time, seconds after that. Refused while a run is going on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_tpu.sh"
tries=5
options "copy tries poll" "$@"
whole_number tries poll
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
top=$(git -C "$root" rev-parse --show-toplevel 2> "$complaints") || refuse "$root: not a git checkout, whose files could be sent"
[ "$top" = "$(cd "$root" && pwd -P)" ] || refuse "$root: not a git checkout of its own; it lies in $top"

untracked=$(git -C "$root" ls-files --others --exclude-standard)
[ -z "$untracked" ] || warn "not sent, since git does not track them (git add them, or --copy): $untracked"
# the working tree as a commit, without touching it; empty where nothing has changed
commit=$(git -C "$root" -c user.name=irl_jax -c user.email=irl_jax@localhost stash create)
archive=$(mktemp -d)
trap 'rm -rf "$archive" "$complaints"' EXIT
git -C "$root" archive --format=tar.gz --output="$archive/irl_jax.tar.gz" "${commit:-HEAD}"

try=1
until on_workers all true; do # sshd and the keys need a moment after ACTIVE
  [ "$try" -lt "$tries" ] || { warn "error: $name: no ssh to its workers after $tries tries; see launch/README.md" && exit 1; }
  try=$((try + 1))
  sleep "$poll"
done
on_workers all 'test ! -f irl_jax/launch/tpu/_worker.sh || bash irl_jax/launch/tpu/_worker.sh idle'
say "$name: sending $(git -C "$root" describe --always --dirty)"
to_workers irl_jax.new.tar.gz "$archive/irl_jax.tar.gz"
# files of the last tree go first, so that none lingers; the environment and what was copied stay
on_workers all 'set -e; mkdir -p irl_jax; touch irl_jax.files; (cd irl_jax && xargs -d "\n" rm -f --) < irl_jax.files
tar -tzf irl_jax.new.tar.gz | grep -v "/$" > irl_jax.files; tar -xzf irl_jax.new.tar.gz -C irl_jax'
if [ ${#COPIES[@]} -gt 0 ]; then to_workers irl_jax/ "${COPIES[@]}"; fi
on_workers all "$(on_worker_script install)"
say "$name: installed on all workers"
