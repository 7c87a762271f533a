#!/usr/bin/env bash
# Create .venv-lmms: lmms-eval over .venv, whose other packages (torch, transformers) it sees, for examples/evaluate_vlm.sh.
# `make test-lmms` runs it; again is quick.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-lmms
mark=$venv/.installed
requirements=tools/lmms_requirements.txt

wanted=$(cat $requirements tools/setup_lmms_environment.sh)
if [ -f $mark ] && [ "$wanted" = "$(cat $mark)" ]; then
    exit 0
fi
if [ ! -x .venv/bin/python ]; then
    echo "error: .venv is missing, whose torch and transformers lmms-eval is to use: make setup" >&2
    exit 2
fi
echo "setting up $venv with lmms-eval (seconds)"
rm -rf $venv
.venv/bin/python -m venv $venv
packages=$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
shared=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$shared')" >"$packages/shared.pth"
$venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $requirements
printf '%s\n' "$wanted" >$mark
