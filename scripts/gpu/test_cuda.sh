#!/usr/bin/env bash
# The test suite on a machine with a GPU: first what only a GPU can test, then, without the GPU, everything else: that the
# PyTorch of this machine does on its CPU what the tests expect.
#
#   bash scripts/gpu/test_cuda.sh [PART]…  cuda, all (default: both)
#                                          OUT=folder for the reports; LIMIT=seconds; DRY_RUN=1: a few tests on the CPU
set -euo pipefail
needs=pytest
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

parts=("$@")
[ $# -gt 0 ] || parts=(cuda all)

run() { # NAME pytest-arguments…
    local name=$1
    shift
    timeout --signal=INT --kill-after=5 "$(left 10)" "$python" -m pytest -v -p no:cacheprovider --durations=10 \
        --junitxml "$out/$name.xml" "$@" 2>&1 | tee "$out/$name.log" | tail -n 15 || # what failed is in the table
        [ "${PIPESTATUS[0]}" -ne 124 ] || echo "$name: cut short, only the tests that ended are counted"
}

parallel() { # WORKERS load|loadfile: pytest's flags for them, if it has the means
    ! "$python" -c 'import xdist' 2>/dev/null || echo "-n $1 --dist $2"
}

for part in "${parts[@]}"; do
    rm -f "$out/$part".{xml,log}
    # shellcheck disable=SC2046  # no flags, or four
    case $part-$dry in
    cuda-1) run cuda tests/inference/test_cuda.py ;;
    all-1) run all tests/inference/test_schedule.py ;;
    cuda-*)
        mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.cuda' tests)
        # Most of the time is the compiler's, on the host.
        TORCHINDUCTOR_COMPILE_THREADS=4 OMP_NUM_THREADS=2 run cuda -m cuda $(parallel 4 load) "${files[@]}"
        ;;
    all-*)
        OMP_NUM_THREADS=2 CUDA_VISIBLE_DEVICES= run all -m "not slurm and not cuda" \
            $(parallel "$(($(nproc) / 2))" loadfile) tests
        ;;
    *) stop "there is no part $part" ;;
    esac
done

"$python" - "$out" "${parts[@]}" <<'PY'
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import torch

gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"\n{gpu}, torch {torch.__version__}")
print(f"{'tests':8} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}")
wrong = 0
for name in sys.argv[2:]:
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
