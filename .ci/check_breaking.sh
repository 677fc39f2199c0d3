#!/usr/bin/env bash
# Fails when the protos break a caller built from protos/baseline.txtpb, the contract as last committed.
# usage: .ci/check_breaking.sh BIN, where BIN is the folder of the virtual environment's programs
set -euo pipefail
if ! "$1/buf" breaking protos --against protos/baseline.txtpb; then
  echo "the change above breaks existing callers: put it into a new version's folder (docs/decisions)" >&2
  exit 1
fi
