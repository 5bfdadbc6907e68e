#!/usr/bin/env bash
# Makes .venv and installs the project there, with the packages that requirements/dev.lock pins (make setup).
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "setup: $*" >&2; exit 1; }

# Without pip it is what an interrupted `python -m venv` left.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  for python in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    python=
  done
  [ -n "$python" ] || fail "no Python 3.11 or newer found. Install one, or name it: make setup PYTHON=/path/to/python"
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot make virtual environments. Install its venv package (on Debian: apt install python3-venv)"
  "$python" -m venv --clear .venv
fi

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

echo "setup: installing the packages of requirements/dev.lock (about 3 GB to download the first time)"
# Two at once: pip unpacks with one core, and CUDA's packages are as much work as all the others. The lock file is
# whole, so neither half asks for what the other one brings.
halves=$(mktemp -d)
cuda=
end() { # nothing writes into .venv any more once this has ended
  if [ -n "$cuda" ]; then { kill "$cuda" && wait "$cuda"; } 2>/dev/null || true; fi
  rm -rf "$halves"
}
trap end EXIT
awk -v cuda="$halves/cuda.lock" -v others="$halves/others.lock" '
  BEGIN { half = others }
  /^[a-z0-9]/ { half = /^(nvidia|cuda|triton)/ ? cuda : others }
  { print > half }' requirements/dev.lock
# Not by the function: what is killed has to be pip itself, and not a shell that waits for it.
.venv/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes \
  --requirement "$halves/cuda.lock" &
cuda=$!
pip install --no-deps --require-hashes --requirement "$halves/others.lock" && wait "$cuda" ||
  fail "the packages could not be installed; pip says why above. Mend that and run make setup again: it goes on where it stopped"
cuda=
pip install --quiet --no-deps --no-build-isolation --editable .
