"""The stack's decisions on a clock that jumps: the ingress's ``Scheduling``, hosts and emulated engines, without processes or sockets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from kit.virtual_time import VirtualLoop
from patchwork_adapters.context import RequestContext
from patchwork_adapters.protocol import HttpRequest, encode_request
from patchwork_adapters.transport import LeafCall
from patchwork_scheduler.admission import Admit
from patchwork_scheduler.cost import BatchCost, TokenCost
from patchwork_scheduler.learned import LearnedBatchCost
from patchwork_scheduler.model import SloClass
from patchwork_scheduler.policies import policy_by_name
from patchwork_scheduler.queue import CallQueue
from patchwork_serving.components.batch_host import BatchHost
from patchwork_serving.components.continuous_host import ContinuousHost
from patchwork_serving.components.emulated import BatchTimes, EmulatedEmbedder
from patchwork_serving.components.emulated_llm import EmulatedLlm
from patchwork_serving.components.emulated_replies import Wish
from patchwork_serving.components.host import ComponentHost
from patchwork_serving.scheduling import Scheduling
from patchwork_serving.scheduling.door import Setting
from patchwork_serving.wire import CallFrame

CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"
#: Longer than any request takes: nobody is stopped.
PATIENCE_S = 1000.0


@dataclass(frozen=True)
class Part:
    """A component: ``batch`` calls run together, or are inside an LLM at once."""

    cost: BatchCost | TokenCost
    replicas: int
    batch: int
    wish: Wish = field(default_factory=Wish)
    hop_s: float = 0.0  #: a call's way there and back


class VirtualStack:
    """``start``, then for each request :meth:`enter`, :meth:`call` and :meth:`leave`; ``close``.

    ``profiled``: whether what LLMs cost is known beforehand.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        parts: Mapping[str, Part],
        slo: SloClass,
        *,
        policy: str,
        admission: Setting,
        profiled: bool = True,
    ) -> None:
        self.loop = loop
        self._profiled = profiled
        self.parts = parts
        self.slo = slo
        self._order = policy_by_name(policy)
        self._names = {name: tuple(str(i) for i in range(part.replicas)) for name, part in parts.items()}
        self._hosts = {
            f"{name}#{one}": self._host(f"{name}#{one}", parts[name])
            for name, mine in self._names.items()
            for one in mine
        }
        llms = {name for name, part in parts.items() if isinstance(part.cost, TokenCost)}
        self.scheduling = Scheduling(
            {slo.name: slo}, {name: part.replicas for name, part in parts.items()}, admission=admission,
            costs={name: part.cost for name, part in parts.items() if profiled or name not in llms},
            replicas_of=self._names.__getitem__, llms=llms,
            slots={name: parts[name].batch for name in llms},
            batches={name: part.batch for name, part in parts.items() if name not in llms},
        )  # fmt: skip
        self._ids = itertools.count()

    async def start(self) -> None:
        for host in self._hosts.values():
            await host.start()

    async def close(self) -> None:
        for host in self._hosts.values():
            await host.close()

    def enter(self, run_id: str, arrived: float) -> RequestContext | None:
        """The request, if it is let in."""
        deadline = arrived + self.slo.deadline_s
        if not isinstance(self.scheduling.decide(run_id, self.slo.name, deadline, self.loop.time()), Admit):
            return None
        return RequestContext(run_id, run_id, slo=self.slo.name, slo_deadline=deadline)

    async def call(self, request: RequestContext, component: str, prompt: str) -> None:
        """One leaf call, as the transport makes it."""
        part, now, llm = self.parts[component], self.loop.time, isinstance(self.parts[component].cost, TokenCost)
        body: Any = {"messages": [{"role": "user", "content": prompt}]} if llm else {"input": prompt, "model": "it"}
        method = f"POST {CHAT if llm else EMBED}"
        payload = encode_request(HttpRequest("POST", method.removeprefix("POST "), {}, orjson.dumps(body)))
        leaf_call = LeafCall(component, "leaf", method, payload, site=component, request=request)
        step = self.scheduling.begin(leaf_call, now())
        sending = self.scheduling.send(step, f"c{next(self._ids)}", now())
        await asyncio.sleep(part.hop_s / 2)
        assert step.due is not None
        frame = CallFrame(
            id=sending.call_id, request_id=request.run_id, leaf="leaf", method=method, payload=payload, site=component,
            remaining_s=PATIENCE_S, due_s=step.due - now(), ahead_s=step.ahead_s, after_s=step.after_s,
            prompt_tokens=step.predicted.prompt_tokens, output_tokens=step.predicted.output_tokens,
        )  # fmt: skip
        reply = await self._hosts[sending.replica].call(frame)
        assert reply.error is None, reply.error
        await asyncio.sleep(part.hop_s / 2)
        self.scheduling.replied(step, sending, reply.report, now())
        self.scheduling.end(step, now())

    def reports(self) -> list[dict[str, Any]]:
        """What the replicas publish of themselves."""
        entries = []
        for name, host in self._hosts.items():
            load = host.load()
            about = {
                "component": name.partition("#")[0],
                "replica": name,
                "queued": load.queued,
                "running": load.running,
            }
            entries.append({**about, **host.counts.report()})
        return entries

    def leave(self, request: RequestContext) -> None:
        self.scheduling.finished(request.run_id, self.loop.time(), whole=True)

    def _host(self, replica: str, part: Part) -> ComponentHost:
        order, clock, cost = self._order, self.loop.time, part.cost
        if isinstance(cost, TokenCost):
            llm = EmulatedLlm(cost, part.wish, name=replica, profile="it", slots=part.batch, clock=clock)
            return ContinuousHost(
                llm, CallQueue(order, max_batch=1), order, replica=replica, slots=part.batch,
                cost=cost if self._profiled else None, bounded=order.heeds_deadlines, clock=clock,
            )  # fmt: skip
        rows = [{"batch": size, "seconds": seconds} for size, seconds in zip(cost.sizes, cost.seconds, strict=True)]
        engine = EmulatedEmbedder(BatchTimes(rows), name=replica, profile="it", dim=4, wish=part.wish, clock=clock)
        learned = LearnedBatchCost(cost)
        queue = CallQueue(order, max_batch=part.batch, cost=learned if order.heeds_deadlines else None)
        return BatchHost(engine, queue, order, learned, replica=replica, max_batch=part.batch, clock=clock)
