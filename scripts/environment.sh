# Finds or makes the Python environment. Sourced: `source scripts/environment.sh [EXTRAS] [MODULES]`, then use "$PYTHON".
#
#   EXTRAS   optional dependency groups of setup.py to install, e.g. "dev,eval"
#   MODULES  Python modules that must import beside sat_sr for an environment to be taken as it is
#
# An active environment in which sat_sr imports is used as it is. Otherwise .venv in the repository is made and filled from
# setup.py, with the versions of scripts/constraints.txt; again when one of the two files changes.

sat_sr_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

sat_sr_imports() { # PYTHON [MODULE…]: asked from another folder, or the checkout itself would answer
    (cd / && "$1" -c 'import importlib, sys; [importlib.import_module(m) for m in ["sat_sr", *sys.argv[1:]]]' "${@:2}") \
        2>/dev/null
}

sat_sr_find_python() { # a Python that is new enough, to make .venv with
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "sat_sr needs Python 3.10 or newer and found none: install it, or set PYTHON=/path/to/python" >&2
    return 1
}

sat_sr_environment() {
    local extras=${1:-} modules=${2:-} venv=$sat_sr_root/.venv base stamp
    local active=${PYTHON:-$(command -v python || command -v python3 || true)}
    # shellcheck disable=SC2086  # modules is a list of words
    if [ -n "$active" ] && sat_sr_imports "$active" $modules; then
        PYTHON=$active
        return
    fi
    stamp=$venv/installed-$(cat "$sat_sr_root/setup.py" "$sat_sr_root/scripts/constraints.txt" | cksum | cut -d' ' -f1)
    PYTHON=$venv/bin/python
    if [ ! -e "$stamp-${extras//,/-}" ] && command -v flock >/dev/null; then
        exec {sat_sr_lock}<"$sat_sr_root/setup.py" # the tasks of a job start together: one sets up, the others wait
        flock "$sat_sr_lock"
    fi
    if [ ! -e "$stamp-${extras//,/-}" ]; then
        base=$(PYTHON= sat_sr_find_python) || return 1
        echo "Setting up sat_sr in $venv (once; a few minutes, about 2 GB; CUDA builds of PyTorch are larger) ..." >&2
        if [ ! -x "$PYTHON" ] && ! "$base" -m venv "$venv"; then
            rm -rf "$venv"
            echo "$base cannot make virtual environments: on Debian and Ubuntu, 'apt-get install python3-venv'" >&2
            return 1
        fi
        # torch first, at its exact version: whatever depends on torch would otherwise choose one.
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -c "$sat_sr_root/scripts/constraints.txt" torch &&
            "$PYTHON" -m pip install --quiet --disable-pip-version-check -c "$sat_sr_root/scripts/constraints.txt" \
                -e "$sat_sr_root${extras:+[$extras]}" || {
            echo "The installation failed; what pip said is above. Running the same command again continues." >&2
            return 1
        }
        touch "$stamp-${extras//,/-}"
        echo "Set up." >&2
    fi
    [ -z "${sat_sr_lock:-}" ] || exec {sat_sr_lock}<&-
}

sat_sr_environment "$@"
