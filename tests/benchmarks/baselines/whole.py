"""Baselines (a) and (b): the chain whole, as LangServe's documentation says, in N uvicorn processes; models behind OPENAI_BASE_URL.

    python tests/benchmarks/baselines/whole.py examples/vanilla_rag.py:chain --port 8001 --workers 4 [--limit 64]

A LlamaIndex engine, which LangServe does not take, gets the same ``/invoke`` route by hand. ``--limit`` is uvicorn's own bound on
concurrency: beyond it, it answers 503 at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

TARGET_VARIABLE = "BASELINE_TARGET"


def build() -> FastAPI:
    """Called in each worker process."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from baselines.loading import load_chain

    chain = load_chain(os.environ[TARGET_VARIABLE])
    app = FastAPI()
    if hasattr(chain, "ainvoke"):
        from langserve import add_routes

        # as its documentation says where the input's type cannot be told from the chain, or is one that pydantic does not take
        add_routes(app, chain.with_types(input_type=Any, output_type=Any))
    else:
        _add_query_routes(app, chain)
    return app


def _add_query_routes(app: FastAPI, engine: Any) -> None:
    """As LlamaIndex's own examples serve an engine with FastAPI."""
    ask = engine.achat if hasattr(engine, "achat") else engine.aquery

    async def invoke(body: dict[str, Any]) -> dict[str, Any]:
        return {"output": str(await ask(body["input"]))}

    app.add_api_route("/invoke", invoke, methods=["POST"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    os.environ[TARGET_VARIABLE] = options.target
    here = Path(__file__)
    uvicorn.run(
        f"{here.stem}:build", factory=True, app_dir=str(here.parent), host="127.0.0.1", port=options.port,
        workers=options.workers, limit_concurrency=options.limit, log_level="warning", access_log=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
