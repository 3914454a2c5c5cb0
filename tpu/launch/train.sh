#!/usr/bin/env bash
# Trains until the model is there; each host of a slice runs this.
#
#   train.sh OUT CONFIG.py [option of jaxemb train ...]
#
# `jaxemb train` ends with code 0 also when SIGTERM made it save a checkpoint and stop. This ends with 75 (try again) then,
# so that whatever started it can tell and start it again.
set -u
out=$1
shift
jaxemb train "$@" --out "$out" --distributed &
child=$!
trap 'kill -TERM "$child"' TERM
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do # the signal ended the wait, not the training
  wait "$child"
  code=$?
done
[ "$code" -eq 0 ] || exit "$code"
[ -d "$out/model" ] || exit 75
