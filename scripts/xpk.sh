#!/usr/bin/env bash
# TPU slices of a GKE cluster that xpk made:
#
#   CLUSTER=my-cluster TYPE=v5litepod-256 SLICES=2 scripts/xpk.sh bigr-l \
#     bigr train --config=bigr:paper --workdir=/bucket/bigr-L --config.mesh.data=2
#
# The first word names the workload. STORAGE is what `xpk storage attach` mounted for data and work
# directories. This checkout is layered into the image BASE; a host that is lost restarts the job,
# up to RESTARTS times, and it goes on from its newest checkpoint.
set -euo pipefail

if [[ $# -lt 2 ]]; then
  sed -n '2,9p' "$0" | sed 's/^# \{0,1\}//' >&2
  exit 2
fi
workload=$1
shift
printf -v words '%q ' "$@"
exec xpk workload create --cluster="${CLUSTER:?the cluster of xpk}" --workload="$workload" \
  --tpu-type="${TYPE:?the slice, e.g. TYPE=v5litepod-256}" --num-slices="${SLICES:-1}" \
  --base-docker-image="${BASE:-python:3.12}" --script-dir="$(cd "$(dirname "$0")/.." && pwd)" \
  --max-restarts="${RESTARTS:-50}" ${STORAGE:+--storage="$STORAGE"} \
  --command="pip install --quiet --editable '.[tpu]' && $words--distributed"
