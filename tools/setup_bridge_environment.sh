#!/usr/bin/env bash
# Create .venv-bridge: Megatron-Bridge's real wheel over .venv, whose other packages (torch, Megatron-Core) it sees.
# `make test-bridge` runs it; again is quick.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-bridge
mark=$venv/.installed
requirements=tests/bridge/requirements.txt
resiliency=nvidia-resiliency-ext==0.7.0 # imported by name alone here

wanted=$(cat $requirements tools/setup_bridge_environment.sh)
if [ -f $mark ] && [ "$wanted" = "$(cat $mark)" ]; then
    exit 0
fi
echo "setting up $venv with Megatron-Bridge (less than a minute)"
rm -rf $venv
.venv/bin/python -m venv $venv
packages=$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
shared=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$shared')" >"$packages/shared.pth"
$venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $requirements
# Its wheels ask for a newer C library than some hosts have, for parts that are not loaded here.
$venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target "$packages" \
    --only-binary=:all: --platform "manylinux_2_39_$(uname -m)" $resiliency
printf '%s\n' "$wanted" >$mark
