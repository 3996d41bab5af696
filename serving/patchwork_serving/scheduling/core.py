"""The one owner of what an ingress process knows and decides. Times are arguments; methods may be called from any thread."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from patchwork_adapters.graph import ComponentGraph
from patchwork_adapters.transport import LeafCall
from patchwork_scheduler.admission import Admit, Decision
from patchwork_scheduler.estimate import Ahead, Estimates
from patchwork_scheduler.model import SloClass, State
from patchwork_serving.scheduling.affinity import Keys, PrefixMemory, keys_of
from patchwork_serving.scheduling.costs import CallCosts, Costs, Predicted
from patchwork_serving.scheduling.door import Door, Setting, Told
from patchwork_serving.scheduling.journeys import START, Journey, Stay
from patchwork_serving.scheduling.seed import seeds
from patchwork_serving.scheduling.sending import Asking, Replicas, Sending
from patchwork_serving.wire import Pulse, Report

#: component -> unique ids of its replicas; the same object until they change
ReplicasOf = Callable[[str], tuple[str, ...]]
#: Call-sites told apart; calls at others count for their component.
MAX_SITES = 512


_AT_THE_DOOR = State(START)


def _none_known(component: str) -> tuple[str, ...]:
    return ()


@dataclass(slots=True)
class Step:
    """One leaf call, from when it is made until it is over, through all its attempts."""

    component: str
    site: str
    size: int
    payload_bytes: int
    predicted: Predicted
    due: float | None  #: when the request's answer was promised, absolute
    ahead_s: float
    after_s: float
    journey: Journey | None
    stay: Stay | None
    number: int
    prefix: Keys = ()  #: where it may find its prompt's beginning in a cache
    failed_at: set[str] = field(default_factory=set)  #: replicas where it failed
    report: Report | None = None
    shared: bool = False  #: another call's work answered it


class Scheduling:
    """Estimates, routers and admission of one process.

    ``replicas``: component -> replicas planned, until Serve tells of others. ``ingresses``: how many processes share their work; each
    counts on its part of it, and learns of the others' work from the replicas' reports.
    ``llms``: components whose replicas may keep the beginnings of prompts. ``slots``: calls that a replica runs at once, where that is set.
    ``batches``: items that a replica runs in one batch.
    """

    def __init__(
        self,
        classes: Mapping[str, SloClass] | None = None,
        replicas: Mapping[str, int] | None = None,
        *,
        admission: Setting = "off",
        ingresses: int = 1,
        graph: ComponentGraph | None = None,
        costs: Costs | None = None,
        replicas_of: ReplicasOf = _none_known,
        llms: Collection[str] = (),
        slots: Mapping[str, int] | None = None,
        batches: Mapping[str, int] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._classes = dict(classes or {})
        self._ingresses = max(ingresses, 1)
        planned = {name: count / self._ingresses for name, count in (replicas or {}).items()}
        self._door = Door(self._classes, planned, admission)
        self._estimates = Estimates()
        self._fitted = dict(costs or {})
        self._slots = dict(slots or {})
        self._batches = dict(batches or {})
        self._sites: set[str] = set()  # known ones
        self._costs: dict[str, CallCosts] = {}
        self._replicas: dict[str, Replicas] = {}
        self._replicas_of = replicas_of
        self._prefixes = {component: PrefixMemory() for component in llms}
        self._journeys: dict[str, Journey] = {}
        self._numbers = itertools.count()
        self._holds = admission == "hold"
        self._under_way: set[int] = set()  # calls, where the door may be held
        self._risks: list[tuple[float, int]] = []
        self.calls_shared = 0
        if graph is not None:
            self._seed(graph)

    # -- requests --------------------------------------------------------------------------------------------------

    def decide(self, run_id: str, slo: str, deadline: float, now: float, weight: int = 1) -> Decision:
        """Whether a request may come in now; if admitted it is in, until :meth:`finished`. ``weight``: inputs of a batch."""
        with self._lock:
            promised = self._classes.get(slo) or SloClass(slo, max(deadline - now, 1e-9))
            known = self._estimates.ahead(_AT_THE_DOOR)
            demand = self._occupied(known, weight)
            ahead = Ahead(known.work_s, known.high_work_s, known.time_s, demand, known.samples)
            decision = self._door.decide(
                run_id, promised, ahead, now, deadline,
                behind_s=self._behind_s(ahead, now), at_risk=self._holds and self._is_at_risk(now),
            )  # fmt: skip
            if isinstance(decision, Admit):
                self._journeys[run_id] = Journey(promised, now, weight, decision.predicted_s)
            return decision

    def finished(self, run_id: str, now: float, *, whole: bool, cancelled: bool = False) -> None:
        """The request ended. ``whole``: it got its answer, so that its way can be learnt from. Safe to repeat."""
        with self._lock:
            journey = self._journeys.pop(run_id, None)
            # who was let in before anything was known says nothing about how well the door predicts
            # and a batch, whose inputs delay one another, nothing about others
            blind = journey is None or journey.predicted_s <= 0.0 or journey.weight > 1
            visits = journey.visits(now) if journey is not None and whole else []
            work_s = visits[0].ahead_s if visits else None
            self._door.admission.finished(run_id, now, cancelled=cancelled or blind, work_s=work_s)
            if journey is None or not whole:
                return
            if not blind:
                self._door.judge(journey.predicted_s, now - journey.arrived)
            if visits:
                self._estimates.observe(visits, now)

    # -- calls -----------------------------------------------------------------------------------------------------

    def begin(self, call: LeafCall, now: float) -> Step:
        """A leaf is called."""
        prefix = keys_of(call) if self._can_choose_by_prefix(call.component) else ()
        with self._lock:
            request = call.request
            run_id = request.run_id if request else ""
            site = self._site(call)
            payload_bytes = len(call.payload)
            predicted = self._costs_of(call.component).predict(site, call.size, payload_bytes)
            journey, stay, ahead = self._journeys.get(run_id), None, None
            if journey is not None:
                stay, is_new = journey.begin(site, call.component, now)
                ahead = self._estimates.ahead(stay.state)
                if is_new:
                    self._door.admission.proceeded(run_id, self._occupied(ahead, journey.weight), call.component)
            work_s = max((ahead or self._estimates.ahead(State(site))).work_s, predicted.alone_s)
            due = (
                None if request is None else request.deadline if request.slo_deadline is None else request.slo_deadline
            )
            step = Step(
                call.component, site, call.size, payload_bytes, predicted, due, work_s, work_s - predicted.alone_s,
                journey, stay, next(self._numbers), prefix,
            )  # fmt: skip
            if self._holds:
                self._under_way.add(step.number)
                if due is not None:
                    heapq.heappush(self._risks, (due - work_s, step.number))
            return step

    def send(self, step: Step, call_id: str, now: float) -> Sending:
        """An attempt of the call goes out, to the replica that is predicted to finish it first."""
        with self._lock:
            replicas = self._replicas_at(step.component, now)
            if step.failed_at and not replicas.has_others(step.failed_at):
                step.failed_at.clear()
            memory = self._prefixes.get(step.component) if step.prefix and len(replicas) > 1 else None
            saved_s = memory.saved_s(step.prefix, step.predicted.alone_s) if memory else None
            return replicas.send(call_id, step.predicted, now, saved_s, step.failed_at)

    def replied(self, step: Step, sending: Sending, report: Report | None, now: float) -> None:
        """The attempt was answered, if only by an error (then without a report)."""
        with self._lock:
            sending.over = True
            step.report = report or step.report
            replicas = self._replicas_at(step.component, now)
            replicas.replied(sending, report, now)
            if report is not None and step.prefix and len(replicas) > 1:
                alone_s = step.predicted.alone_s
                ratio = report.service_s / alone_s if report.batch <= 1 and alone_s > 0.0 else None
                self._prefixes[step.component].observe(step.prefix, report.replica, ratio)

    def heard(self, sending: Sending, now: float) -> None:
        """A piece of the answer came."""
        with self._lock:
            replicas = self._replicas.get(sending.component)
            if replicas is not None:
                replicas.router.heard(sending.replica, now)

    def listen(self, now: float) -> tuple[list[Asking], bool]:
        """Whose pulse is to be taken now, and whether to listen again in ``heartbeat.TICK_S``."""
        with self._lock:
            found: list[Asking] = []
            again = False
            for component, replicas in self._replicas.items():
                names, goes_on = replicas.router.tick(now)
                found.extend(Asking(component, name) for name in names)
                again = again or goes_on
            return found, again

    def pulsed(self, asking: Asking, pulse: Pulse | None, now: float) -> None:
        """What came of it. None, or another replica's pulse: the question did not reach the one that was asked."""
        with self._lock:
            router = self._replicas[asking.component].router
            if pulse is None or pulse.replica != asking.replica:
                router.unanswered(asking.replica)
            else:
                router.pulsed(
                    asking.replica, now, well=pulse.well, backlog_s=pulse.queued_s + pulse.running_s, slowness=pulse.slowness
                )  # fmt: skip

    def lost(self, step: Step, sending: Sending, now: float) -> None:
        """The replica died with the attempt, or did not take it."""
        with self._lock:
            sending.over = True
            replicas = self._replicas_at(step.component, now)
            replicas.router.lost(sending.replica, sending.call_id, now)
            if sending.replica:
                step.failed_at.add(sending.replica)

    def has_others(self, step: Step) -> bool:
        """Whether a replica exists where the call has not failed yet."""
        with self._lock:
            replicas = self._replicas.get(step.component)
            return bool(step.failed_at) and replicas is not None and replicas.has_others(step.failed_at)

    def left(self, sending: Sending) -> None:
        """The attempt was given up by its caller; nothing once it is over."""
        with self._lock:
            if not sending.over:
                sending.over = True
                replicas = self._replicas.get(sending.component)
                if replicas is not None:
                    replicas.router.left(sending.replica, sending.call_id)

    def end(self, step: Step, now: float) -> None:
        """The call is over, well or badly."""
        with self._lock:
            self._under_way.discard(step.number)
            report, predicted = step.report, step.predicted
            if report is not None and not step.shared:
                now_expected = self._costs_of(step.component).observe(step.site, step.size, step.payload_bytes, report)
                if report.batch > 1:  # meanwhile more may be known of calls alone
                    predicted = now_expected
            if step.shared:
                self.calls_shared += 1
            if step.journey is not None and step.stay is not None:
                work_s = _work_s(report, predicted)
                step.journey.end(step.stay, work_s, 0.0 if step.shared else work_s, now)

    # -- what is known ---------------------------------------------------------------------------------------------

    def facts(self, now: float) -> dict[str, Any]:
        """For ``/info`` and metrics: admission, calibration, replicas. JSON."""
        with self._lock:
            prefixes = {name: memory.facts() for name, memory in self._prefixes.items() if memory.calls}
            return {
                **self._door.facts(), "calls_shared": self.calls_shared, "prefixes": prefixes, "predictions": self._predictions(),
            }  # fmt: skip

    def told(self) -> tuple[Told, ...]:
        """The latest decisions, oldest first."""
        with self._lock:
            return tuple(self._door.told)

    def _predictions(self) -> list[dict[str, Any]]:
        found = []
        for state, calibration in self._estimates.calibration().items():
            ahead = self._estimates.ahead(state)
            found.append(
                {
                    "site": state.site,
                    "loop": state.loop,
                    "work_s": ahead.work_s,
                    "work_p98_s": ahead.high_work_s,
                    "time_s": ahead.time_s,
                    **calibration.to_json(),
                }
            )
        return found

    # -- inside the lock -------------------------------------------------------------------------------------------

    def _can_choose_by_prefix(self, component: str) -> bool:
        # before the first answer nobody knows of any replica, and who answers has seen a prompt, too
        replicas = self._replicas.get(component)
        return component in self._prefixes and (replicas is None or len(replicas) != 1)

    def _site(self, call: LeafCall) -> str:
        """The call-site that the call counts for. What a client sends decides which there are, in some chains: not without end."""
        site = call.site or call.component
        if site in self._sites or site == call.component:
            return site
        if len(self._sites) >= MAX_SITES:
            return call.component
        self._sites.add(site)
        return site

    def _seed(self, graph: ComponentGraph) -> None:
        for site in graph.call_sites:
            self._sites.add(site.id)
            if site.seconds is not None:
                self._costs_of(site.component).seed(site.id, site.seconds)
        for name, work_s, demand in seeds(graph):
            self._estimates.seed(State(name), work_s, demand)

    def _costs_of(self, component: str) -> CallCosts:
        costs = self._costs.get(component)
        if costs is None:
            costs = self._costs[component] = CallCosts(
                self._fitted.get(component), self._batches.get(component, 1), self._slots.get(component)
            )
        return costs

    def _replicas_at(self, component: str, now: float) -> Replicas:
        replicas = self._replicas.get(component)
        if replicas is None:
            replicas = self._replicas[component] = Replicas(component)
        names = self._replicas_of(component)
        # none at all is a moment of replacement, in which calls wait: what was there before is the better guess
        if replicas.update(names, now) and names:
            self._door.admission.set_replicas({component: len(names) / self._ingresses})
        return replicas

    def _occupied(self, ahead: Ahead, weight: int) -> dict[str, float]:
        """The demand of so many inputs of a batch, by how much it delays others.

        Demand is learnt in seconds alone, and what these are worth in company is put in here: it changes faster than requests end.
        """
        costs = self._costs
        return {
            name: weight * seconds * (costs[name].ratio if name in costs else 1.0)
            for name, seconds in ahead.demand.items()
        }

    def _behind_s(self, ahead: Ahead, now: float) -> float:
        """Work waiting in the replicas, that of other doors included."""
        known = self._replicas
        return max((known[name].queued_s(now) for name in ahead.demand if name in known), default=0.0)

    def _is_at_risk(self, now: float) -> bool:
        """The paper's question: does any call under way belong to a request that is expected to miss?"""
        risks = self._risks
        while risks and risks[0][1] not in self._under_way:
            heapq.heappop(risks)
        return bool(risks) and risks[0][0] < now


def _work_s(report: Report | None, predicted: Predicted) -> float:
    """Seconds that the call took, or would have taken alone: never more than it did take, as a site's mean is of calls that differ."""
    if report is None:
        return predicted.alone_s
    if report.alone_s > 0.0:
        return report.alone_s
    return report.service_s if report.batch <= 1 else min(predicted.alone_s, report.service_s)
