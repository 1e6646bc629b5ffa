#!/usr/bin/env bash
# A TPU slice of Google Cloud, from nothing to a training run and back.
#
#   scripts/tpu_vm.sh create                     asks for the slice and waits until it is there
#   scripts/tpu_vm.sh install                    puts this checkout on every host, with its packages
#   scripts/tpu_vm.sh run bigr train --config=bigr:paper ...      the same command on every host
#   scripts/tpu_vm.sh keep bigr train --config=bigr:paper ...     the same, and again after a preemption
#   scripts/tpu_vm.sh stop                       every process saves its state and ends
#   scripts/tpu_vm.sh delete
#
# Set NAME, ZONE and TYPE (v5litepod-256, v5p-128, v6e-64, ...); VERSION is the runtime image that
# goes with the type; SPOT=1 takes capacity that may be preempted; BUCKET is mounted at ~/bucket on
# every host, for data and work directories.
set -euo pipefail

NAME=${NAME:?the name of the slice, e.g. NAME=bigr}
ZONE=${ZONE:?the zone, e.g. ZONE=us-west4-a}

tpu() {
  gcloud compute tpus "$@" --zone="$ZONE"
}

everywhere() {
  tpu tpu-vm ssh "$NAME" --worker=all --command="$1"
}

state() {
  tpu queued-resources describe "$NAME" --format='value(state.state)' 2>/dev/null || echo ABSENT
}

create() {
  local type=${TYPE:?the slice, e.g. TYPE=v5litepod-256} version=${VERSION:-} now
  if [[ -z $version ]]; then
    case $type in
      v5litepod-*) version=v2-alpha-tpuv5-lite ;;
      v5p-*) version=v2-alpha-tpuv5 ;;
      v6e-*) version=v2-alpha-tpuv6e ;;
      *) echo "set VERSION, the runtime image for $type" >&2; exit 2 ;;
    esac
  fi
  tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$type" \
    --runtime-version="$version" ${SPOT:+--spot}
  while now=$(state); [[ $now != ACTIVE ]]; do
    if [[ $now == FAILED || $now == SUSPENDED || $now == ABSENT ]]; then
      echo "the slice $NAME is $now" >&2
      exit 1
    fi
    echo "the slice $NAME is $now; waiting"
    sleep "${POLL:-30}"
  done
}

install() {
  local archive
  archive=$(mktemp -d)/bigr_jax.tar.gz
  git -C "$(dirname "$0")/.." archive --format=tar.gz --prefix=bigr_jax/ HEAD >"$archive"
  tpu tpu-vm scp "$archive" "$NAME:" --worker=all
  everywhere "tar xzf bigr_jax.tar.gz && python3 -m venv bigr_env &&
    bigr_env/bin/pip install --quiet --editable './bigr_jax[tpu]'"
  if [[ -n ${BUCKET:-} ]]; then
    everywhere "mkdir -p bucket && (mountpoint -q bucket || gcsfuse --implicit-dirs $BUCKET bucket)"
  fi
}

run() {
  local words
  printf -v words '%q ' "$@"
  everywhere "cd ~ && PATH=\$HOME/bigr_env/bin:\$PATH $words--distributed"
}

keep() {
  until run "$@"; do
    if [[ $(state) == ACTIVE ]]; then
      echo "the run ended with an error on a slice that stands; see above" >&2
      exit 1
    fi
    echo "the slice $NAME was preempted; asking for another"
    delete || true
    create
    install
  done
}

stop() {
  everywhere "pkill -TERM -f '[b]igr_env/bin/bigr' || true"
}

delete() {
  tpu queued-resources delete "$NAME" --quiet --force
}

case ${1:-} in
  create | install | run | keep | stop | delete) "$@" ;;
  *) sed -n '2,14p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2 ;;
esac
