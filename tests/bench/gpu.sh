#!/usr/bin/env bash
# Measurements that need a GPU, at most 10 minutes; the last line of the output is one JSON object.
# Needs torch, transformers, peft, accelerate, pyarrow, pyyaml and pydantic. Without a GPU it tries everything in tiny sizes.
set -euo pipefail
cd "$(dirname "$0")/../.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec timeout 600 "${PYTHON:-python3}" -m tests.bench.bench_gpu "$@"
