#!/usr/bin/env bash
# Writes requirements/*.lock: every package pinned with its hashes, from what pyproject.toml asks for.
# dev.lock comes first and holds everything; the other two pin the same versions.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
tools=.cache/lock-tools
[ -x "$tools/bin/uv" ] || { "$python" -m venv "$tools" && "$tools/bin/pip" install --quiet uv==0.13.9; }

# uv does not read pip's settings: hand it the index that pip would use.
index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$("$tools/bin/pip" config get global.index-url 2>/dev/null || true)}}
if [ -n "$index" ]; then export UV_DEFAULT_INDEX=$index; fi
# What is resolved for 3.11 may be read by any Python: none is downloaded.
export UV_PYTHON_DOWNLOADS=never

lock() { # name, then the rest of uv's arguments
  local name=$1
  shift
  "$tools/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links --no-annotate --no-header "$@" -o "requirements/$name.lock.new"
  {
    echo "# What \`pip install --require-hashes\` takes for $name. Written by scripts/lock.sh (make lock)."
    cat "requirements/$name.lock.new"
  } >"requirements/$name.lock"
  rm "requirements/$name.lock.new"
}

trap 'rm -f requirements/*.lock.new requirements/build.in' EXIT
# What builds the project itself: pinned too, so that installing it needs no unpinned download.
sed -n 's/^requires = \["\(.*\)"\]$/\1/p' pyproject.toml >requirements/build.in
lock dev requirements/build.in pyproject.toml --extra operator --extra trainer --extra dev
lock operator requirements/build.in pyproject.toml --extra operator --constraint requirements/dev.lock
lock trainer requirements/build.in pyproject.toml --extra trainer --constraint requirements/dev.lock
