# shellcheck shell=bash disable=SC2154
# Sourced with `venv`, `requirements` and `what`: makes an environment over .venv, whose other packages it sees, or leaves where
# it is there. The caller installs what else it has, then marks it as done.
mark=$venv/.installed
wanted=$(cat "$requirements" "tools/$(basename "$0")" tools/environment_over_venv.sh)
if [ -f "$mark" ] && [ "$wanted" = "$(cat "$mark")" ]; then
    exit 0
fi
if [ ! -x .venv/bin/python ]; then
    echo "error: .venv is missing, whose packages $venv is to use: make setup" >&2
    exit 2
fi
echo "setting up $venv with $what"
rm -rf "$venv"
.venv/bin/python -m venv "$venv"
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
shared=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$shared')" >"$packages/shared.pth"
install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps)
"${install[@]}" -r "$requirements"
