"""The adapters' part of a deploy: one process imports, records and exports; another replays, swaps and answers the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from patchwork_adapters.binding import Assignment
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.openai_cut import OpenAICut
from patchwork_adapters.record import ImportRecord, RecordingTransport, ReplayTransport
from patchwork_adapters.stores import export, fingerprint
from patchwork_adapters.swap import swap
from patchwork_adapters.target import LoadedTarget, load_target, parse_target
from patchwork_adapters.walk import find_leaves

from .fakes import FakeCluster

FILES = Path(__file__).parent / "chains"


def route(base_url: str, path: str, model: str | None) -> str | None:
    return {"small": "llm", "embed": "embedder"}.get(model or "")


@pytest.fixture(autouse=True)
def clean_path() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before
    for name in ("openai_lcel", "openai_llama", "big_import"):
        sys.modules.pop(name, None)


def fresh(name: str) -> LoadedTarget:
    sys.modules.pop(Path(name).stem, None)
    return load_target(parse_target(str(FILES / name)))


def build(name: str, cluster: FakeCluster) -> tuple[ImportRecord, dict[str, Assignment]]:
    """What the builder does."""
    record = ImportRecord()
    with Bridge(RecordingTransport(cluster, record)) as bridge:
        cut = OpenAICut(bridge, route)
        cut.install()
        loaded = fresh(name)
        cut.undo()
    assignments = {}
    for leaf in find_leaves(loaded.chain, loaded.module, loaded.root).leaves:
        if leaf.spec.export is None:
            assignments[leaf.path] = Assignment({"llm": "llm", "embedder": "embedder"}[leaf.kind], "protocol")
        else:
            cluster._add({"collection": "c", "rows": [r.to_dict() for r in export(leaf.spec, leaf.obj).rows]})
            mark = fingerprint(leaf.spec, leaf.obj)
            assignments[leaf.path] = Assignment("store", "engine", collection="c", fingerprint=mark)
    return record, assignments


def ask(loaded: LoadedTarget, question: str) -> Any:
    if loaded.framework == "langchain":
        return loaded.chain.invoke(question)
    response = loaded.chain.query(question)
    return response.response, [(n.node_id, n.text) for n in response.source_nodes]


async def aask(loaded: LoadedTarget, question: str) -> Any:
    if loaded.framework == "langchain":
        return await loaded.chain.ainvoke(question)
    response = await loaded.chain.aquery(question)
    return response.response, [(n.node_id, n.text) for n in response.source_nodes]


@pytest.mark.parametrize("name", ["openai_lcel.py", "openai_llama.py"])
async def test_another_process_answers_the_same_without_doing_the_imports_work_again(name: str) -> None:
    if name == "openai_llama.py":
        pytest.importorskip("llama_index.llms.openai_like")
    cluster = FakeCluster()
    record, assignments = build(name, cluster)
    assert len(record) >= 1
    assert b"sk-secret" not in record.to_bytes()

    # the chain as its author runs it: models behind the same URL, the store in its process
    with Bridge(cluster) as bridge:
        cut = OpenAICut(bridge, route)
        cut.install()
        plain = fresh(name)
        expected = [ask(plain, q) for q in ("one", "two")], [await aask(plain, q) for q in ("one", "two")]
        cut.undo()

    cluster.calls.clear()
    replay = ReplayTransport(ImportRecord.from_bytes(record.to_bytes()), cluster)
    with Bridge(replay) as bridge:
        cut = OpenAICut(bridge, route)
        cut.install()
        loaded = fresh(name)
        assert cluster.calls == []  # everything asked at import was in the record
        walk = find_leaves(loaded.chain, loaded.module, loaded.root)
        made = swap(walk.leaves, assignments, bridge, cut=cut)
        assert made.skipped == []
        assert ([ask(loaded, q) for q in ("one", "two")], [await aask(loaded, q) for q in ("one", "two")]) == expected
        made.undo()
        cut.undo()
    assert {call.component for call in cluster.calls} == {"llm", "embedder", "store"}
    assert {call.leaf for call in cluster.calls} == set(assignments)
    assert all(b"sk-secret" not in call.payload for call in cluster.calls)


#: What a second process does: imports the module with the record, and with nobody to ask.
SECOND = """
import json, sys
from pathlib import Path
from patchwork_adapters.bridge import Bridge
from patchwork_adapters.openai_cut import OpenAICut
from patchwork_adapters.record import ImportRecord, ReplayTransport
from patchwork_adapters.target import load_target, parse_target

replay = ReplayTransport(ImportRecord.load(Path(sys.argv[2])))
with Bridge(replay) as bridge:
    OpenAICut(bridge, lambda base_url, path, model: {"embed": "embedder", "small": "llm"}.get(model)).install()
    module = load_target(parse_target(sys.argv[1])).module
print(json.dumps({"asked": replay.num_missed, "rows": len(module.store.store), "contents": module.contents()}))
"""


def test_two_thousand_passages_embedded_at_import_are_not_embedded_again_by_a_second_process(tmp_path: Path) -> None:
    cluster, record = FakeCluster(), ImportRecord()
    with Bridge(RecordingTransport(cluster, record)) as bridge:
        cut = OpenAICut(bridge, route)
        cut.install()
        first = fresh("big_import.py").module
        cut.undo()
    assert len(cluster.calls) >= 1
    record.save(tmp_path / "record")
    ran = subprocess.run(
        [sys.executable, "-c", SECOND, str(FILES / "big_import.py"), str(tmp_path / "record")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert json.loads(ran.stdout) == {"asked": 0, "rows": 2000, "contents": first.contents()}
