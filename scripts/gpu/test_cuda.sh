#!/usr/bin/env bash
# The test suite on a machine with a GPU: first what only a GPU can test, then, without the GPU, everything else: that the
# PyTorch of this machine does on its CPU what the tests expect.
#
#   bash scripts/gpu/test_cuda.sh          OUT=folder for the reports; LIMIT=seconds; DRY_RUN=1: a few tests on the CPU
set -euo pipefail
needs=pytest
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

run() { # NAME pytest-arguments…
    local name=$1
    shift
    timeout --signal=INT "$(left 10)" "$python" -m pytest -q -p no:cacheprovider --junitxml "$out/$name.xml" "$@" 2>&1 |
        tee "$out/$name.log" | tail -n 15 || true # what failed is in the table
}

if [ "$dry" = 1 ]; then
    run cuda tests/inference/test_cuda.py
    run all tests/inference/test_schedule.py
else
    mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.cuda' tests)
    run cuda -m cuda "${files[@]}"
    parallel=()
    "$python" -c 'import xdist' 2>/dev/null && parallel=(-n "$(($(nproc) / 2))" --dist loadfile)
    OMP_NUM_THREADS=2 CUDA_VISIBLE_DEVICES= run all -m "not slurm and not cuda" "${parallel[@]}" tests
fi

"$python" - "$out" <<'PY'
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import torch

gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"\n{gpu}, torch {torch.__version__}")
print(f"{'tests':8} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}")
wrong = 0
for name in ("cuda", "all"):
    path = Path(sys.argv[1]) / f"{name}.xml"
    if not path.exists():
        print(f"{name:8} did not end, see {path.with_suffix('.log')}")
        wrong += 1
        continue
    suite = xml.parse(path).getroot().find("testsuite").attrib
    failed = int(suite["failures"]) + int(suite["errors"])
    passed = int(suite["tests"]) - failed - int(suite["skipped"])
    wrong += failed
    print(f"{name:8} {passed:7} {failed:7} {suite['skipped']:>8} {float(suite['time']):8.0f}")
sys.exit(bool(wrong))
PY
