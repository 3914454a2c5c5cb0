#!/usr/bin/env bash
# Trains on a slice of Cloud TPU VMs that a queued resource asks for, and asks for another one whenever it is taken away,
# until the model is in the bucket. It may be stopped and started again at any time; the training goes on meanwhile.
#
#   PROJECT=my-project ZONE=us-west4-a ACCELERATOR=v5litepod-64 BUCKET=my-bucket IMAGE=my-image \
#     tpu/launch/queued_resource.sh NAME CONFIG.py [option of jaxemb train ...]
#
# The bucket (with a hierarchical namespace) is /mnt/bucket for the training, and OUT is /mnt/bucket/NAME.
# CAPACITY is --spot unless it is set: empty for on demand, --reserved for a reservation.
set -euo pipefail
: "${PROJECT:?}" "${ZONE:?}" "${ACCELERATOR:?such as v5litepod-64}" "${BUCKET:?}" "${IMAGE:?}"
capacity=${CAPACITY---spot}
name=${1:?NAME CONFIG.py ...}
shift
case $ACCELERATOR in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) echo "ACCELERATOR must be v5litepod-N, v5p-N or v6e-N; got $ACCELERATOR" >&2 && exit 2 ;;
esac

# Runs as root on every host, each time that it boots.
startup=$(mktemp)
trap 'rm -f "$startup"' EXIT
cat >"$startup" <<EOF
#!/usr/bin/env bash
set -eux
curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg >/usr/share/keyrings/cloud.google.asc
echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt \
gcsfuse-\$(lsb_release -cs) main" >/etc/apt/sources.list.d/gcsfuse.list
apt-get update
apt-get install -y gcsfuse
mkdir -p /mnt/bucket
mountpoint -q /mnt/bucket || gcsfuse --implicit-dirs --metadata-cache-ttl-secs 0 $BUCKET /mnt/bucket
gcloud auth configure-docker --quiet ${IMAGE%%/*}
docker rm -f train || true
docker run --detach --name train --restart on-failure:10 --stop-timeout 25 --privileged --net host \
  --volume /mnt/bucket:/mnt/bucket $IMAGE /mnt/bucket/$name $(printf '%q ' "$@")
EOF

where=(--project "$PROJECT" --zone "$ZONE")
queued() { gcloud compute tpus queued-resources "$@" "${where[@]}"; }
finished() { gcloud storage ls "gs://$BUCKET/$name/model/" >/dev/null 2>&1; }

until finished; do
  state=$(queued list --filter "name~'(^|/)$name\$'" --format 'value(state.state)')
  echo "$(date +%T) $name: ${state:-absent}"
  case $state in
    "")
      queued create "$name" --node-id "$name" --accelerator-type "$ACCELERATOR" --runtime-version "$runtime" \
        --scopes cloud-platform --metadata-from-file "startup-script=$startup" ${capacity:+"$capacity"}
      ;;
    SUSPENDED | FAILED) queued delete "$name" --force --quiet ;;
  esac
  sleep 60
done
queued delete "$name" --force --quiet
echo "the model is gs://$BUCKET/$name/model"
