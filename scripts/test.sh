#!/usr/bin/env bash
# Lint and the whole test suite, on a fresh machine too: bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh dev,eval "pytest xdist hypothesis skimage stlpips_pytorch"

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check --quiet sat_sr scripts tests ./*.py
# One thread a process: the tests are small, and two processes use two cores better than two threads do.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false WANDB_MODE=disabled
exec "$PYTHON" -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile --durations 15 "$@"
