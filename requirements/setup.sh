#!/bin/sh
# Builds the virtual environment at $1 from requirements/lock.txt: with uv where there is one, else with venv and pip.
# Copies instead of hard links: nltk (below llama-index) refuses data files that are linked more than once.
set -eu
venv=$1
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
  echo "setup: $python is $("$python" -V 2>&1); Patchwork needs Python 3.11 to 3.13. Remedy: make setup PYTHON=python3.12" >&2
  exit 2
}
if command -v uv >/dev/null 2>&1; then
  [ -x "$venv/bin/python" ] || uv venv -q --python "$python" "$venv"
  UV_LINK_MODE=copy uv pip install -q --only-binary :all: --require-hashes -p "$venv/bin/python" -r requirements/lock.txt
  UV_LINK_MODE=copy uv pip install -q --no-deps -p "$venv/bin/python" -e .
else
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  # not compiled ahead, as with uv: most of what is installed is never imported
  "$venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check --only-binary :all: --require-hashes \
    -r requirements/lock.txt
  "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps -e .
fi
