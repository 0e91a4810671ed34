#!/bin/sh
# Makes .venv-clients: other people's clients, with which the tests try our drop-in interfaces. Their dependencies do
# not go together with ours, so they live apart. Does nothing if that has been done.
set -eu
lock=tests/clients/requirements.lock
stamp=.venv-clients/installed.lock

if [ -x .venv-clients/bin/python ] && cmp -s "$lock" "$stamp"; then
    exit 0
fi
rm -f "$stamp"
.venv/bin/python -m venv --clear .venv-clients
if ! .venv/bin/uv pip sync --quiet --python .venv-clients/bin/python --require-hashes "$lock"; then
    echo "uv cannot be had here; pip goes on with the same lock" >&2
    .venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
fi
cp "$lock" "$stamp"
