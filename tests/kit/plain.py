"""Runs an example as it is, without Patchwork, and prints what it answers: ``python -m kit.plain FILE < questions``.

One JSON line per question: the answer, and the ids, scores and topics of the passages that it was made from.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    file = Path(sys.argv[1])
    sys.path.insert(0, str(file.parent))
    module: Any = __import__(file.stem)
    for line in sys.stdin:
        question = line.strip()
        if hasattr(module, "query_engine"):
            answer = asked(module.query_engine, question)
        else:
            found = module.store.similarity_search_with_score(question, k=3)
            sources = [[d.id, score, d.metadata["topic"]] for d, score in found]
            answer = {"answer": module.chain.invoke(question), "sources": sources}
        print(json.dumps(answer), flush=True)


def asked(engine: Any, question: str) -> dict[str, Any]:
    response = engine.query(question)
    sources = [[n.node.node_id, n.score, n.node.metadata["topic"]] for n in response.source_nodes]
    return {"answer": str(response), "sources": sources}


if __name__ == "__main__":
    main()
