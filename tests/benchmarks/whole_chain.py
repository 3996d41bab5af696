"""The baseline of ``bench_demo_chain``: the example served whole, as LangServe's documentation says, models behind OPENAI_BASE_URL."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from langserve import add_routes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    from vanilla_rag import chain  # type: ignore[import-not-found]

    app = FastAPI()
    add_routes(app, chain)
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
