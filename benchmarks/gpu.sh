#!/usr/bin/env bash
# Every GPU path of the library checked against the CPU's tables and timed on the card: under nine minutes on one
# card. Run in the repository's root, on a machine with a CUDA build of torch; what is printed is the result.
#     bash benchmarks/gpu.sh [--quick]
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
exec timeout 540 python3 -m benchmarks.gpu "$@"
