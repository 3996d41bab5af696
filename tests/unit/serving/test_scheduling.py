"""What an ingress decides, as stories in plain numbers: who comes in, which replica gets a call, what is learnt."""

from __future__ import annotations

import pytest

from patchwork_adapters import codec
from patchwork_adapters.context import RequestContext
from patchwork_adapters.graph import END, START, CallSite, ComponentGraph, Edge
from patchwork_adapters.transport import LeafCall
from patchwork_scheduler.admission import Admit, Hold, Refuse
from patchwork_scheduler.cost import BatchCost
from patchwork_scheduler.model import SloClass
from patchwork_serving.scheduling import Scheduling, Sending, Step
from patchwork_serving.scheduling.core import MAX_SITES
from patchwork_serving.scheduling.costs import CallCosts
from patchwork_serving.wire import Report

SLO = {"fast": SloClass("fast", 2.0)}


class World:
    """A scheduling with one component, ``llm``, and its replicas."""

    def __init__(self, *replicas: str, **options: object) -> None:
        self.names = tuple(replicas)
        options = {"admission": "refuse", "slots": {"llm": 1}, **options}
        self.it = Scheduling(SLO, {"llm": len(replicas)}, replicas_of=lambda _: self.names, **options)  # type: ignore[arg-type]

    def enter(self, run_id: str, now: float, deadline: float | None = None) -> object:
        return self.it.decide(run_id, "fast", now + 2.0 if deadline is None else deadline, now)

    def call(self, run_id: str, now: float, site: str = "answer", component: str = "llm") -> tuple[Step, Sending]:
        step = self.it.begin(leaf_call(run_id, site, component), now)
        return step, self.it.send(step, f"{run_id}-{site}-{now}", now)

    def answer(
        self, step: Step, sending: Sending, now: float, service_s: float, replica: str | None = None, **report: float
    ) -> None:
        replica = replica or sending.replica or f"{step.component}#?"
        told = Report(replica, service_s=service_s, **report)  # type: ignore[arg-type]
        self.it.replied(step, sending, told, now)
        self.it.end(step, now)

    def request(self, run_id: str, now: float, *seconds: float) -> None:
        """A whole request whose calls follow one another, each at a site of its own."""
        assert isinstance(self.enter(run_id, now), Admit)
        for i, service_s in enumerate(seconds):
            step, sending = self.call(run_id, now, site=f"site{i}")
            now += service_s
            self.answer(step, sending, now, service_s)
        self.it.finished(run_id, now, whole=True)


def leaf_call(run_id: str, site: str = "answer", component: str = "llm", payload: bytes | None = None) -> LeafCall:
    request = RequestContext("same-id-from-the-client", run_id, deadline=100.0, slo="fast", slo_deadline=50.0)
    return LeafCall(component, "leaf", "chat", payload or run_id.ljust(400).encode(), site=site, request=request)


def prediction(world: World, site: str, loop: int = 0) -> dict[str, float]:
    found = world.it.facts(0.0)["predictions"]
    return next(one for one in found if (one["site"], one["loop"]) == (site, loop))  # type: ignore[no-any-return]


def test_a_call_is_told_the_work_ahead_of_its_request() -> None:
    world = World("a")
    for n in range(20):
        world.request(f"r{n}", n * 10.0, 0.1, 1.0)
    world.enter("r", 500.0)
    first, _ = world.call("r", 500.0, "site0")
    assert first.predicted.alone_s == pytest.approx(0.1)
    assert first.ahead_s == pytest.approx(1.1)
    assert first.after_s == pytest.approx(1.0)
    assert first.due == 50.0


def test_loops_are_told_apart_by_their_count() -> None:
    world = World("a")
    for n in range(30):
        world.enter(f"r{n}", now := n * 10.0)
        for turn in range(3):
            step, sending = world.call(f"r{n}", now + turn, "think")
            world.answer(step, sending, now + turn + 0.5, 0.5)
        world.it.finished(f"r{n}", now + 2.5, whole=True)
    # half a second of the chain's own lies between the turns
    assert [prediction(world, "think", loop)["work_s"] for loop in range(3)] == pytest.approx([2.5, 1.5, 0.5])


def test_call_sites_without_end_count_for_their_component() -> None:
    graph = ComponentGraph("t", "langchain", (), (CallSite("sampled", "llm", seconds=0.2),), ())
    world = World("a", graph=graph)
    steps = [world.call("r", 0.0, f"site{n}")[0] for n in range(2 * MAX_SITES)]
    sites = {step.site for step in steps}
    assert len(sites) == MAX_SITES  # the sampled one is known as well, and all others are "llm"
    assert steps[0].site == "site0"
    assert steps[-1].site == "llm"
    assert [world.call("r", 0.0, site)[0].site for site in ("sampled", "site0", "new")] == ["sampled", "site0", "llm"]


def test_branches_that_run_side_by_side_count_once() -> None:
    world = World("a")
    for n in range(20):
        world.enter(f"r{n}", now := n * 10.0)
        long, short = world.call(f"r{n}", now, "long"), world.call(f"r{n}", now, "short")
        world.answer(*short, now=now + 0.2, service_s=0.2)
        world.answer(*long, now=now + 1.0, service_s=1.0)
        last = world.call(f"r{n}", now + 1.0, "last")
        world.answer(*last, now=now + 1.5, service_s=0.5)
        world.it.finished(f"r{n}", now + 1.5, whole=True)
    assert prediction(world, "__start__")["work_s"] == pytest.approx(1.5)
    assert prediction(world, "short")["work_s"] == pytest.approx(0.7)


def test_calls_of_one_site_at_once_are_one_visit_that_occupies_more() -> None:
    world = World("a")
    for n in range(20):
        world.enter(f"r{n}", now := n * 10.0)
        calls = [world.call(f"r{n}", now, "each") for _ in range(4)]
        for call in calls:
            world.answer(*call, now=now + 1.0, service_s=1.0)
        world.it.finished(f"r{n}", now + 1.0, whole=True)
    assert prediction(world, "each")["work_s"] == pytest.approx(1.0)
    assert [one["loop"] for one in world.it.facts(0.0)["predictions"] if one["site"] == "each"] == [0]
    world.enter("r", 500.0)
    assert world.it.facts(500.0)["delay_s"] == pytest.approx(4.0)


def test_the_time_that_the_chain_itself_takes_is_ahead_as_well() -> None:
    world = World("a")
    for n in range(20):
        world.enter(f"r{n}", now := n * 10.0)
        world.answer(*world.call(f"r{n}", now + 0.5), now=now + 1.5, service_s=1.0)
        world.it.finished(f"r{n}", now + 1.7, whole=True)
    assert prediction(world, "__start__")["work_s"] == pytest.approx(1.7)


def test_waiting_is_no_work_but_takes_time() -> None:
    world = World("a")
    for n in range(20):
        world.enter(f"r{n}", now := n * 10.0)
        world.answer(*world.call(f"r{n}", now), now=now + 3.0, service_s=1.0, queue_s=2.0)
        world.it.finished(f"r{n}", now + 3.0, whole=True)
    found = prediction(world, "answer")
    assert (found["work_s"], found["time_s"]) == (pytest.approx(1.0), pytest.approx(3.0))
    assert found["predicted_over_actual"] == pytest.approx(1.0)
    assert found["judged"] == 19


def test_a_batch_and_a_request_without_its_whole_answer_teach_nothing() -> None:
    world = World("a")
    world.it.decide("batch", "fast", 2.0, 0.0, weight=3)
    world.answer(*world.call("batch", 0.0), now=1.0, service_s=1.0)
    world.it.finished("batch", 1.0, whole=True)
    world.enter("late", 0.0)
    world.answer(*world.call("late", 0.0), now=1.0, service_s=1.0)
    world.it.finished("late", 9.0, whole=False)
    assert world.it.facts(9.0)["predictions"] == []
    assert world.it.facts(9.0)["in_flight"] == 0


def test_a_batch_that_comes_late_does_not_narrow_the_door_for_others() -> None:
    world = World("a")
    world.request("r", 0.0, 0.5)
    world.enter("before", 100.0)
    world.it.decide("batch", "fast", 102.0, 100.0, weight=3)
    world.it.finished("batch", 110.0, whole=True)
    assert world.it.facts(110.0)["margin"] == 1.0
    world.it.decide("single", "fast", 102.0, 100.0)
    world.it.finished("single", 110.0, whole=True)
    assert world.it.facts(110.0)["margin"] < 1.0


def test_a_batch_counts_as_often_as_it_has_inputs() -> None:
    world = World("a")
    world.request("r", 0.0, 0.5)
    world.it.decide("batch", "fast", 102.0, 100.0, weight=3)
    assert world.it.facts(100.0)["delay_s"] == pytest.approx(1.5)


def test_who_would_be_late_is_refused_and_told_when_to_come_back() -> None:
    world = World("a")
    world.request("r", 0.0, 0.9)
    assert isinstance(world.enter("first", 100.0), Admit)
    assert isinstance(world.enter("second", 100.0), Admit)
    refused = world.enter("third", 100.0)  # 1.8 s before it, and 0.9 s of its own
    assert isinstance(refused, Refuse)
    assert refused.predicted_s == pytest.approx(2.7, abs=0.05)
    assert 0.7 <= refused.retry_after_s <= 0.8  # 1.1 s to spare, and the door opens a little later than it shuts
    assert [one.what for one in world.it.told()] == ["door shut"]
    world.it.finished("first", 101.0, whole=True)
    world.it.finished("second", 101.0, whole=True)
    assert isinstance(world.enter("fourth", 101.0), Admit)
    assert world.it.told()[-1].why == "fast: 1 refused meanwhile"
    assert world.it.facts(101.0)["decided"] == {"fast": {"admitted": 4, "refused": 1}}


def test_nobody_is_refused_before_anything_is_known() -> None:
    world = World("a")
    assert all(isinstance(world.enter(f"r{n}", 0.0), Admit) for n in range(100))


def test_what_takes_too_long_even_alone_is_tried_now_and_then_because_predictions_grow_old() -> None:
    world = World("a")
    for n in range(11):
        world.request(f"slow{n}", n * 6.0, 5.0)
    decisions = [world.enter(f"r{n}", 100.0 + n / 10) for n in range(2)]
    assert [type(one) for one in decisions] == [Admit, Refuse]  # the first with nobody inside is let in to learn
    world.it.finished("r0", 101.0, whole=False)
    assert isinstance(world.enter("soon", 101.5), Refuse)
    assert isinstance(world.enter("later", 102.1), Admit)


def test_whoever_finds_nobody_inside_is_let_in_while_little_is_known() -> None:
    world = World("a")
    world.request("cold", 0.0, 5.0)
    for n in range(10):
        assert isinstance(world.enter(f"r{n}", 100.0 + n / 10), Admit)
        assert isinstance(world.enter(f"s{n}", 100.0 + n / 10), Refuse)
        world.it.finished(f"r{n}", 100.05 + n / 10, whole=False)


def test_one_cold_request_does_not_set_the_door() -> None:
    world = World("a")
    world.request("cold", 0.0, 1.9)
    for n in range(20):
        world.request(f"r{n}", 10.0 + n, 0.2)
    assert [type(world.enter(f"s{n}", 100.0)) for n in range(4)] == [Admit] * 4
    assert world.it.facts(100.0)["delay_s"] > 0.3


def test_a_crowd_that_came_before_anything_was_known_does_not_shut_the_door_for_those_after_it() -> None:
    world = World("a", slots={"llm": 8})
    calls = []
    for n in range(30):
        world.enter(f"r{n}", 0.0)
        calls.append(world.call(f"r{n}", 0.0))
    for n, call in enumerate(calls):  # eight at a time, each taking 1.5 s instead of 1
        world.answer(
            *call, now=1.5 * (1 + n // 8), service_s=1.5 if n else 1.0, batch=min(n + 1, 8), queue_s=1.5 * (n // 8)
        )
        world.it.finished(f"r{n}", 1.5 * (1 + n // 8), whole=True)
    let_in = [world.enter(f"s{n}", 20.0) for n in range(8)]
    assert sum(isinstance(one, Admit) for one in let_in) >= 4
    assert world.it.facts(20.0)["margin"] == 1.0


def test_work_that_other_doors_sent_counts_too() -> None:
    world = World("a")
    world.request("r", 0.0, 0.5)
    step, sending = world.call("none", 100.0)
    world.answer(step, sending, 100.0, 0.5, queued_s=3.0)
    assert isinstance(world.enter("a", 100.0), Refuse)
    assert isinstance(world.enter("b", 102.5), Admit)  # by then it is drained


def test_held_requests_wait_while_somebody_inside_is_expected_to_miss() -> None:
    world = World("a", admission="hold")
    world.request("r", 0.0, 1.0)
    world.enter("inside", 10.0)
    step, sending = world.call("inside", 10.0)  # due at 50
    assert isinstance(world.enter("early", 20.0), Admit)
    assert isinstance(world.enter("held", 49.5), Hold)
    world.answer(step, sending, 49.6, 1.0)
    assert isinstance(world.enter("held", 49.7), Admit)


def test_a_call_goes_to_the_replica_that_will_finish_it_first() -> None:
    world = World("a", "b")
    world.request("r", 0.0, 1.0)
    busy = world.call("r1", 100.0)[1].hint
    idle = world.call("r2", 100.0)[1].hint
    assert {busy, idle} == {"a", "b"}
    step, sending = world.call("r3", 100.1)
    world.answer(step, sending, 100.2, 1.0, queued_s=9.0)  # others sent much to it
    other = ({"a", "b"} - {sending.hint}).pop()
    assert {world.call(f"s{n}", 100.3)[1].hint for n in range(4)} == {other}


def test_a_call_that_failed_on_one_replica_is_sent_to_another_and_the_lost_one_is_left_alone() -> None:
    world = World("a", "b")
    step, sending = world.call("r", 0.0)
    world.it.lost(step, sending, 0.1)
    assert world.it.has_others(step)
    again = world.it.send(step, "again", 0.1)
    assert {sending.hint, again.hint} == {"a", "b"}
    assert {world.call(f"s{n}", 0.2)[1].hint for n in range(3)} == {again.hint}
    world.it.lost(step, again, 0.3)
    assert not world.it.has_others(step)
    assert world.it.send(step, "third", 0.3).hint in ("a", "b")  # both failed: begin anew


def test_a_silent_replica_is_avoided_within_a_second() -> None:
    world = World("a", "b")
    for n in range(4):
        world.request(f"r{n}", n * 10.0, 0.1)
    silent = world.call("stuck", 100.0)[1].hint
    assert [world.call(f"s{n}", 100.7)[1].hint for n in range(8)].count(silent) == 0


def test_replicas_that_come_and_go_are_followed() -> None:
    world = World("a")
    assert world.call("r", 0.0)[1].hint == "a"
    world.names = ("b",)
    assert world.call("r", 1.0)[1].hint == "b"
    world.names = ()
    assert world.call("r", 2.0)[1].hint == ""  # Serve waits for one


def test_a_cancelled_call_is_no_work_any_more() -> None:
    world = World("a", "b")
    world.request("r", 0.0, 1.0)
    step, sending = world.call("gone", 100.0)
    world.it.left(sending)
    world.it.end(step, 100.1)
    hints = [world.call(f"s{n}", 100.1)[1].hint for n in range(2)]
    assert sorted(hints) == ["a", "b"]


def test_a_second_request_with_the_clients_same_id_is_another_one() -> None:
    world = World("a")
    world.enter("one", 0.0)
    world.enter("two", 0.0)
    assert world.it.facts(0.0)["in_flight"] == 2
    world.it.finished("one", 1.0, whole=False, cancelled=True)
    world.it.finished("one", 1.0, whole=False, cancelled=True)
    assert world.it.facts(1.0)["in_flight"] == 1


def test_a_prompt_goes_where_its_beginning_is_once_that_is_seen_to_help() -> None:
    world = World("a", "b", llms=["llm"])
    for n in range(40):  # each request calls twice, and a replica that has seen it takes half as long
        now = n * 10.0
        step, sending = world.call(f"r{n}", now, "think")
        world.answer(step, sending, now + 1.0, 1.0)
        again, second = world.call(f"r{n}", now + 2.0, "think")
        took = 0.5 if second.replica == sending.replica else 1.0
        world.answer(again, second, now + 2.0 + took, took)
    for n in range(10):
        now = 1000.0 + n * 10.0
        step, sending = world.call(f"s{n}", now, "think")
        world.answer(step, sending, now + 1.0, 1.0)
        assert world.call(f"s{n}", now + 2.0, "think")[1].hint == sending.hint


def test_a_question_about_a_document_goes_where_an_earlier_one_went_whoever_asks() -> None:
    world = World("a", "b", llms=["llm"])

    def ask(document: int, question: str, now: float) -> tuple[Step, Sending]:
        text = f"{document}. " + "It is said that " * 200
        payload = codec.encode({"body": {"messages": [{"role": "user", "content": f"{text}\n{question}"}]}})
        step = world.it.begin(leaf_call(f"r{now}", payload=payload), now)
        return step, world.it.send(step, f"call{now}", now)

    went: dict[int, str] = {}
    for document in range(8):
        step, sending = ask(document, "Who?", 10.0 + document)
        went[document] = sending.replica or "llm#b"  # the first call tells which replicas there are
        world.answer(step, sending, 11.0 + document, 1.0, replica=went[document])
    assert set(went.values()) == {"llm#a", "llm#b"}
    for turn, question in enumerate(("Why?", "Since when?", "And who says so?")):
        for document in (3, 0, 7, 5, 1, 6, 2, 4):
            now = 100.0 * (turn + 1) + document
            step, sending = ask(document, question, now)
            world.answer(step, sending, now + 0.6, 0.6)
            assert sending.replica == went[document]


def test_in_its_first_minute_a_prompt_goes_where_its_beginning_is_though_that_replica_seems_slower() -> None:
    """The first calls of a replica take longer than its later ones, which says little about it."""
    world = World("a", "b", llms=["llm"])
    long = (b"It is said that " * 200, b"Others say that " * 200)
    for n, (text, replica, took) in enumerate(zip(long, ("llm#a", "llm#b"), (1.0, 1.25), strict=True)):
        step = world.it.begin(leaf_call(f"r{n}", payload=text), float(n * 10))
        world.answer(step, world.it.send(step, f"call{n}", n * 10.0), n * 10.0 + took, took, replica=replica)
    again = world.it.begin(leaf_call("s", payload=long[1]), 100.0)
    assert world.it.send(again, "again", 100.0).replica == "llm#b"


def test_calls_made_before_the_first_answer_count_too() -> None:
    world = World(llms=["llm"])  # Serve has told of no replica yet
    texts = [n.to_bytes(2, "big") * 600 for n in range(4)]
    steps = [world.it.begin(leaf_call(f"r{n}", payload=text), 0.0) for n, text in enumerate(texts)]
    sent = [(step, world.it.send(step, f"call{n}", 0.0)) for n, step in enumerate(steps)]
    world.names = ("a", "b")
    for n, (step, sending) in enumerate(sent):
        world.answer(step, sending, 1.0, 1.0, replica=f"llm#{'ab'[n % 2]}")
    assert world.it.facts(1.0)["prefixes"]["llm"]["calls"] == 4


def test_where_a_repeat_saves_nothing_calls_take_turns() -> None:
    world = World("a", "b", llms=["llm"])
    for n in range(60):
        now = n * 10.0
        world.answer(*world.call(f"r{n // 2}", now), now=now + 1.0, service_s=1.0)
    assert len({world.call("same", 1000.0 + n)[1].hint for n in range(2)}) == 2


def test_the_doors_predictions_are_judged_too() -> None:
    world = World("a")
    for n in range(10):
        world.request(f"r{n}", n * 10.0, 1.0)
    facts = world.it.facts(100.0)
    assert (facts["judged"], facts["predicted_over_actual"]) == (9, pytest.approx(1.0))


def test_a_batch_is_not_judged_as_its_inputs_delay_one_another() -> None:
    world = World("a")
    world.request("r", 0.0, 1.0)
    world.request("next", 10.0, 1.0)
    judged = world.it.facts(20.0)["judged"]
    world.it.decide("batch", "fast", 30.0, 20.0, 8)
    step, sending = world.call("batch", 20.0, site="site0")
    world.answer(step, sending, 29.0, 9.0)
    world.it.finished("batch", 29.0, whole=True)
    facts = world.it.facts(30.0)
    assert (judged, facts["judged"], facts["predicted_over_actual"]) == (1, 1, pytest.approx(1.0))


def test_a_replica_in_the_middle_of_a_long_stream_is_not_silent() -> None:
    world = World("a", "b")
    _, first = world.call("r1", 0.0)
    others = [world.call(f"o{n}", 0.0)[1] for n in range(1)]
    assert first.replica != others[0].replica
    assert world.it._replicas["llm"].router._replicas[first.replica].trouble(5.0) == 1
    world.it.heard(first, 5.0)
    assert world.it._replicas["llm"].router._replicas[first.replica].trouble(5.2) == 0


def test_tokens_are_predicted_from_the_bytes_of_the_prompt() -> None:
    world = World("a")
    world.answer(*world.call("r", 0.0), now=1.0, service_s=1.0, prompt_tokens=100, output_tokens=20)
    step, _ = world.call("r", 2.0)
    assert (step.predicted.prompt_tokens, step.predicted.output_tokens) == (100, 20)


def test_an_engine_that_had_room_is_hoped_to_be_cheaper_in_larger_company_until_calls_have_to_wait() -> None:
    world = World("a", slots={})
    for n in range(3):
        world.answer(*world.call("r", n), now=n + 1.0, service_s=1.0)
    assert world.call("r", 10.0)[0].predicted.occupied_s == pytest.approx(0.5)
    for n in range(20, 23):
        world.answer(*world.call("r", n), now=n + 1.0, service_s=1.0, batch=2)
    assert world.call("r", 30.0)[0].predicted.occupied_s == pytest.approx(0.25)
    world.answer(*world.call("r", 40.0), now=42.0, service_s=1.0, batch=2, queue_s=1.0)
    assert world.call("r", 50.0)[0].predicted.occupied_s == pytest.approx(0.5)


def test_what_is_learnt_of_company_counts_at_once_for_all_who_are_to_come() -> None:
    world = World("a", slots={"llm": 4})
    for n in range(30):
        world.request(f"r{n}", n * 10.0, 1.0)
    world.enter("before", 500.0)
    assert world.it.facts(500.0)["delay_s"] == pytest.approx(0.5)
    world.it.finished("before", 501.0, whole=False, cancelled=True)
    for n in range(3):
        world.answer(*world.call("x", 510.0 + n, "site0"), now=512.0 + n, service_s=1.0, batch=4)
    world.enter("after", 520.0)
    assert world.it.facts(520.0)["delay_s"] == pytest.approx(0.25)


def test_what_a_call_occupies_is_learnt_from_its_company() -> None:
    world = World("a", slots={"llm": 4})
    for n in range(5):
        world.answer(*world.call("r", n), now=n + 1.0, service_s=1.2, batch=4)
    step, _ = world.call("r", 10.0)
    assert step.predicted.occupied_s == pytest.approx(0.3)
    world.answer(*world.call("r", 11.0), now=12.0, service_s=1.0)
    assert world.call("r", 12.0)[0].predicted.alone_s == pytest.approx(1.0)  # not the 1.2 of company


def test_the_engines_own_model_is_believed_before_what_was_measured_in_company() -> None:
    world = World("a")
    world.answer(*world.call("r", 0.0), now=3.0, service_s=3.0, batch=9, alone_s=0.8, occupied_s=0.1)
    step, _ = world.call("r", 4.0)
    assert (step.predicted.alone_s, step.predicted.occupied_s) == (pytest.approx(0.8), pytest.approx(0.1))


@pytest.mark.parametrize(("batches", "occupied_s"), [({"llm": 4}, 0.25), ({}, 1.0)])
def test_a_profiled_call_occupies_its_share_of_the_batches_that_its_replicas_run(
    batches: dict[str, int], occupied_s: float
) -> None:
    world = World("a", costs={"llm": BatchCost((1, 4, 64), (1.0, 1.0, 2.0))}, batches=batches)
    predicted = world.call("r", 0.0)[0].predicted
    assert (predicted.alone_s, predicted.occupied_s) == (pytest.approx(1.0), pytest.approx(occupied_s))


def test_a_call_of_many_items_occupies_no_more_than_it_takes() -> None:
    assert CallCosts(BatchCost((1, 8), (1.0, 2.0)), max_batch=1).predict("site", 8, 0)[:2] == (2.0, 2.0)


def test_sample_runs_say_what_lies_ahead_before_any_traffic() -> None:
    sites = (
        CallSite("grade", "llm", seconds=0.2),
        CallSite("search", "web", seconds=1.0),
        CallSite("answer", "llm", seconds=2.0),
    )
    edges = (
        Edge(START, "grade", "data", 1.0), Edge("grade", "search", "cond", 0.25), Edge("grade", "answer", "cond", 0.75),
        Edge("search", "grade", "loop", 0.5), Edge("search", "answer", "cond", 0.5), Edge("answer", END, "data", 1.0),
    )  # fmt: skip
    world = World("a", graph=ComponentGraph("t", "langgraph", (), sites, edges))
    grade = (0.2 + 0.25 * 1.0 + 0.25 * 0.5 * 2.0 + 0.75 * 2.0) / (1 - 0.25 * 0.5)
    assert prediction(world, "grade")["work_s"] == pytest.approx(grade)
    assert prediction(world, "__start__")["work_s"] == pytest.approx(grade)
    assert world.call("r", 0.0, "search", "web")[0].predicted.alone_s == pytest.approx(1.0)
