#!/usr/bin/env bash
# Generates the Python code of all protos.
# usage: .ci/generate_python.sh BIN OUT, where BIN is the folder of the virtual environment's programs
set -euo pipefail
bin=$1
out=$2
mapfile -t protos < <(find protos -name '*.proto' | LC_ALL=C sort)
mapfile -t services < <(printf '%s\n' "${protos[@]}" | grep '_service\.proto$')
protoc=("$bin/python" -m grpc_tools.protoc -I protos
  "--plugin=protoc-gen-mypy=$bin/protoc-gen-mypy" "--plugin=protoc-gen-mypy_grpc=$bin/protoc-gen-mypy_grpc")

"${protoc[@]}" "--python_out=$out" "--mypy_out=quiet:$out" "${protos[@]}"
"${protoc[@]}" "--grpc_python_out=$out" "--mypy_grpc_out=quiet:$out" "${services[@]}"
