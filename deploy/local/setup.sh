#!/bin/sh
# Makes .venv from requirements.lock and nothing else; does nothing if that has been done. Killed half-way: run it again.
# uv takes 5 s where pip takes 12; where uv cannot be had, pip installs the same files, held to the same hashes.
set -eu
python=${1:-python3}
stamp=.venv/installed.lock # a copy of the lock that it was made from, written last

if [ -x .venv/bin/python ] && cmp -s requirements.lock "$stamp"; then
    exit 0
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "Python 3.11 or later is needed, and $python is not: install one, then e.g. make PYTHON=python3.13 setup" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$python has no venv: install it (on Debian and Ubuntu: apt install python3-venv)" >&2
    exit 1
fi

rm -f "$stamp"
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    "$python" -m venv --clear .venv
fi
install=".venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes"
if ! { $install --only-binary :all: -r deploy/local/installer.lock &&
    .venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes requirements.lock; }; then
    echo "uv cannot be had here; pip goes on with the same lock" >&2
    $install -r requirements.lock
fi
cp requirements.lock "$stamp"
