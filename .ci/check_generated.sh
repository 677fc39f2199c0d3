#!/usr/bin/env bash
# Fails when committed generated code is not what the protos generate. Leaves the work tree as it was.
# usage: .ci/check_generated.sh BIN, where BIN is the folder of the virtual environment's programs
set -euo pipefail
bin=$1
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

.ci/generate_python.sh "$bin" "$fresh"
stale=0
while IFS= read -r file; do
  cmp -s "$fresh/$file" "clients/python/$file" || { echo "clients/python/$file is not what the protos generate" >&2; stale=1; }
done < <({ cd "$fresh" && find . -name '*_pb2*' -type f; cd "$OLDPWD/clients/python" && find . -name '*_pb2*.py*' -not -name '*.pyc' -type f; } | sed 's,^\./,,' | sort -u)

"$bin/buf" build protos --exclude-source-info -o "$fresh/baseline.txtpb"
cmp -s "$fresh/baseline.txtpb" protos/baseline.txtpb || { echo "protos/baseline.txtpb is not what the protos say" >&2; stale=1; }

if [ "$stale" -ne 0 ]; then
  echo "run 'make protos' and commit the result" >&2
fi
exit "$stale"
