#!/usr/bin/env bash
# Create .venv beside this repository's Makefile with the known-good versions. `make setup` runs it; again is quick.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
mark=$venv/.installed
extras=${EXTRAS:-dev,mpi,report,eval,docs}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.12 python3 python python3.13 python3.14; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: no Python 3.12 or newer was found. Get one with 'uv python install 3.12', 'pyenv install 3.12' or your" \
        "system's package manager, then run this again (or name it: make setup PYTHON=/path/to/python3.12)." >&2
    exit 2
}

wanted=$(cat pyproject.toml setup.py constraints.txt; echo "$extras")
if [ -f "$mark" ] && [ "$wanted" = "$(cat "$mark")" ]; then
    exit 0
fi
python=$(find_python)
echo "setting up $venv with $("$python" --version) (a few minutes the first time: torch is large)"
[ -x $venv/bin/python ] || "$python" -m venv $venv
$venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
printf '%s\n' "$wanted" >"$mark"
echo "$venv is ready"
