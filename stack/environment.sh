#!/bin/sh
# environment.sh PYTHON DIRECTORY CONSTRAINTS WHAT...: a virtual environment with WHAT in the versions of CONSTRAINTS.
set -eu

python=$1 directory=$2 constraints=$3
shift 3

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "$python is $("$python" --version 2>&1); Python 3.11 or later is needed. Try: make PYTHON=python3.11 ..." >&2
    exit 1
}
echo "Building $directory ..."
rm -f "$directory/ready"
[ -x "$directory/bin/python" ] || "$python" -m venv "$directory"
# uv installs what takes pip minutes in seconds.
"$directory/bin/python" -m pip install -qq --disable-pip-version-check --constraint "$constraints" uv
"$directory/bin/uv" pip install --quiet --python "$directory/bin/python" --constraint "$constraints" "$@"
touch "$directory/ready"
