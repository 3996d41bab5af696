"""Sample runs: call-sites, visits, probabilities and tokens as the deterministic leaves of the shapes give them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit.twins import swapped
from patchwork_adapters import sites
from patchwork_adapters.causes import causes_of
from patchwork_adapters.checking.cases import case_of
from patchwork_adapters.checking.sides import placement_of
from patchwork_adapters.graph import ComponentGraph
from patchwork_adapters.learning import learnt
from patchwork_adapters.placement import place
from patchwork_adapters.recorder import static_graph
from patchwork_adapters.sample_runs import SamplesFailed, sample_graph
from patchwork_adapters.sampling import Sampled, SampledCall, SampledRequest
from patchwork_adapters.target import load_target, parse_target
from patchwork_adapters.walk import find_leaves

SHAPES = Path(__file__).parents[2] / "kit" / "shapes"
pytestmark = pytest.mark.filterwarnings("ignore")


def sample(
    shape: str, inputs: Sequence[Any], on_progress: Callable[[int, SampledRequest], None] | None = None
) -> Sampled:
    loaded = load_target(parse_target(str(SHAPES / shape)))
    walk = find_leaves(loaded.chain, loaded.module, loaded.root)
    placed = place(walk.leaves, placement_of)
    static = static_graph(shape, loaded, walk, placed.components, placed.opaque)
    return sample_graph(
        loaded, walk, placed, static, [case_of(i) for i in inputs], on_progress=on_progress, timeout_s=60
    )


def edges(graph: ComponentGraph) -> dict[tuple[str, str], tuple[str, float | None, int]]:
    """By the leaves at both ends; of a leaf called from several places, each place by itself."""
    return {(e.source.split("@")[0], e.target.split("@")[0]): (e.kind, e.probability, e.count) for e in graph.edges}


def visits(graph: ComponentGraph) -> dict[str, float | None]:
    return {site.id.split("@")[0]: site.visits for site in graph.call_sites}


def test_probabilities_of_a_corrective_graph_are_those_that_its_graders_give() -> None:
    inputs = [{"question": q} for q in ("why apples?", "list hard bread", "a", "b", "c", "d")]
    sampled = sample("graphs.py:crag_graph", inputs)
    # what the nodes did is counted from the calls: a rewrite is a round that the graders turned down
    rounds = [[c.leaf for c in r.calls].count("store") for r in sampled.requests]
    rewrites = sum(rounds) - len(inputs)
    assert rewrites > 0
    graph = sampled.graph
    share = len(inputs) / sum(rounds)
    assert edges(graph) == {
        ("__start__", "store._embedding"): ("data", 1.0, 6),
        ("store._embedding", "store"): ("data", 1.0, sum(rounds)),
        ("store", "grader"): ("map", 1.0, sum(rounds)),
        ("grader", "writer"): ("cond", pytest.approx(share), 6),
        ("grader", "rewriter"): ("cond", pytest.approx(1 - share), rewrites),
        ("rewriter", "store._embedding"): ("loop", 1.0, rewrites),
        ("writer", "__end__"): ("data", 1.0, 6),
    }
    assert visits(graph) == {
        "store": pytest.approx(sum(rounds) / 6), "store._embedding": pytest.approx(sum(rounds) / 6), "writer": 1.0,
        "grader": pytest.approx(3 * sum(rounds) / 6), "rewriter": pytest.approx(rewrites / 6),
    }  # fmt: skip
    grader = next(s for s in graph.call_sites if s.id.startswith("grader@"))
    assert (grader.loops, grader.prompt_tokens, grader.output_tokens, grader.tokens) == (3 * max(rounds), 1.0, 5.0, 6.0)
    assert {s.id for s in graph.call_sites} > {
        "store@retrieve/retrieve:31",
        "grader@grade/grade:36",
        "writer@generate/generate:55",
    }
    assert graph.requests == 6
    assert graph.glue_s is not None
    assert graph.glue_s > 0


def test_the_loop_of_a_call_is_how_often_its_place_had_been_visited() -> None:
    (request,) = sample("graphs.py:crag_graph", [{"question": "list hard bread"}]).requests
    by_leaf: dict[str, list[int]] = {}
    for call in request.calls:
        by_leaf.setdefault(call.leaf, []).append(call.loop)
    assert by_leaf["grader"] == list(range(len(by_leaf["grader"])))
    assert by_leaf["store"] == list(range(len(by_leaf["store"])))


def test_nodes_of_one_step_run_beside_each_other_and_are_a_map() -> None:
    graph = sample("graphs.py:map_reduce", [{"topics": ["a", "b", "c"]}]).graph
    assert edges(graph) == {
        ("__start__", "writer"): ("map", 1.0, 1), ("writer", "rewriter"): ("data", 1.0, 1), ("rewriter", "__end__"): ("data", 1.0, 1),
    }  # fmt: skip
    writer = next(s for s in graph.call_sites if s.id.startswith("writer"))
    assert (writer.visits, writer.serial, writer.reached) == (3.0, 1.0, 1.0)


def test_queries_that_a_model_makes_are_counted() -> None:
    found = visits(sample("lcel.py:compressed", ["apples"]).graph)
    assert (found["other_chat"], found["store"], found["embeddings"]) == (1.0, 3.0, 3.0)


def test_keys_of_a_parallel_part_do_not_follow_one_another_even_when_their_calls_do() -> None:
    graph = sample("lcel.py:fan_out", ["apples"]).graph
    pairs = edges(graph).keys()
    assert ("chat", "other_chat") not in pairs
    assert ("other_chat", "chat") not in pairs
    assert {
        ("store", "chat"),
        ("memory_store", "chat"),
        ("store", "other_chat"),
        ("memory_store", "other_chat"),
    } <= pairs


def test_a_branch_that_no_sample_took_stays_in_the_graph() -> None:
    graph = sample("lcel.py:branch", ["why", "neither"]).graph
    assert edges(graph)["__start__", "other_chat"] == ("cond", 0.0, 0)
    assert edges(graph)["__start__", "chat"] == ("cond", 0.5, 1)
    assert visits(graph)["other_chat"] == 0.0


def test_a_query_engine_over_others_shows_which_of_its_parts_asks_the_model() -> None:
    pytest.importorskip("llama_index.core")
    seen: list[int] = []
    sampled = sample("engines.py:sub_question", ["what about apples?"], lambda done, _: seen.append(done))
    assert {c.site for c in sampled.requests[0].calls if c.leaf == "llm"} == {
        "llm@sub_question._question_gen", "llm@compact._response_synthesizer", "llm@accumulate._response_synthesizer",
        "llm@sub_question._response_synthesizer",
    }  # fmt: skip
    assert seen == [1]


def test_an_input_that_the_chain_refuses_counts_as_far_as_it_came_and_only_bad_ones_are_an_error() -> None:
    sampled = sample("lcel.py:unguarded", [{"question": "easy"}, {"question": "hard"}])
    assert [r.error for r in sampled.requests] == [None, "Busy"]
    assert sampled.requests[1].calls[0].error == "Busy"
    with pytest.raises(SamplesFailed, match="raised on every input, first Busy"):
        sample("lcel.py:unguarded", [{"question": "hard"}])


def test_faults_of_the_recorder_are_told_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from patchwork_adapters.sites_langchain import RunPlaces

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("in a callback")

    monkeypatch.setattr(RunPlaces, "begin", broken)
    with pytest.raises(SamplesFailed, match="ZeroDivisionError: in a callback"):
        sample("lcel.py:simple", ["apples"])


@pytest.mark.parametrize("is_swapped", [False, True])
def test_a_search_of_an_exported_store_is_seen_before_the_swap_and_after(is_swapped: bool) -> None:
    loaded = load_target(parse_target(f"{SHAPES / 'lcel.py'}:fan_out"))
    walk = find_leaves(loaded.chain, loaded.module, loaded.root)
    placed = place(walk.leaves, placement_of)
    static = static_graph("fan_out", loaded, walk, placed.components, placed.opaque)
    store = next(leaf for leaf in walk.leaves if leaf.spec.export is not None)
    with swapped(store.obj, None) if is_swapped else nullcontext():
        sampled = sample_graph(loaded, walk, placed, static, [case_of("apples")], timeout_s=60)
    [search] = [call for call in sampled.requests[0].calls if call.leaf == store.path]
    [embedding] = [call for call in sampled.requests[0].calls if call.leaf == f"{store.path}.embedding"]
    assert search.started >= embedding.ended, "the question is embedded first, in nobody else's time"
    assert search.site == f"{store.path}@1/{{kept}}"


def test_what_was_sampled_travels_as_json() -> None:
    sampled = sample("lcel.py:simple", ["apples"])
    assert Sampled.from_json(json.loads(json.dumps(sampled.to_json()))) == sampled
    assert ComponentGraph.from_json(sampled.graph.to_json()) == sampled.graph


# ---- causes, on plain numbers


def calls(*rows: tuple[str, float, float]) -> list[SampledCall]:
    return [SampledCall(site, site, site, "m", start, end - start) for site, start, end in rows]


def steps(rows: list[SampledCall]) -> set[tuple[str, str]]:
    causes = causes_of(rows, [None] * len(rows))
    name = [visit.site for visit in causes.visits]
    return {("^" if a is None else name[a], "$" if b is None else name[b]) for a, b in causes.steps}


def test_a_call_follows_what_ended_before_it_and_nothing_that_ended_before_that() -> None:
    assert steps(calls(("a", 0, 1), ("b", 1, 2), ("c", 2, 3))) == {("^", "a"), ("a", "b"), ("b", "c"), ("c", "$")}


def test_calls_at_once_follow_the_same_and_lead_to_the_same() -> None:
    rows = calls(("a", 0, 1), ("b", 1, 3), ("c", 1, 2), ("d", 3, 4))
    assert steps(rows) == {("^", "a"), ("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "$")}


def test_several_calls_at_once_of_one_place_are_a_map() -> None:
    rows = calls(("ask", 0, 1), ("search", 1, 2), ("search", 1, 2), ("search", 1, 3), ("answer", 3, 4))
    request = SampledRequest(0, 4.0, 0.0, tuple(rows))
    graph = learnt(ComponentGraph("t", "langchain", ()), [request], [causes_of(rows, [None] * 5)])
    assert edges(graph)["ask", "search"] == ("map", 1.0, 1)
    search = next(s for s in graph.call_sites if s.id == "search")
    assert (search.visits, search.serial, search.loops) == (3.0, 1.0, 1)


def test_repeats_with_nothing_between_are_one_visit_and_a_return_is_another() -> None:
    causes = causes_of(calls(("a", 0, 1), ("a", 1, 2), ("b", 2, 3), ("a", 3, 4)), [None] * 4)
    assert [visit.calls for visit in causes.visits] == [(0, 1), (2,), (3,)]
    assert causes.loops == (0, 1, 0, 2)
    assert causes.serial == {"a": 3, "b": 1}


def test_a_site_of_a_run_counts_for_the_less_exact_one_of_the_structure() -> None:
    assert sites.is_within("llm@grade/grade:36", "llm@grade")
    assert sites.is_within("llm@grade/grade:36", "llm")
    assert not sites.is_within("llm@grader/x:1", "llm@grade")
    assert not sites.is_within("other@grade", "llm@grade")


def test_a_place_that_the_structure_does_not_show_is_added() -> None:
    static = ComponentGraph("t", "langchain", ())
    (call,) = calls(("llm@f:1", 0, 1))
    request = SampledRequest(0, 1.0, 0.0, (replace(call, component="llm"),))
    graph = learnt(static, [request], [causes_of([call], [None])])
    assert [(s.id, s.component, s.visits) for s in graph.call_sites] == [("llm@f:1", "llm", 1.0)]
