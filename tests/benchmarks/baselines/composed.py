"""Baseline (c): Ray Serve composed by hand: one deployment for each model, one for the chain, Serve's own router and autoscaler.

    python composed.py examples/vanilla_rag.py:chain --port 8001 --model smollm2-135m-instruct --model all-minilm-l6-v2

The models are the same engines as everywhere, each in a deployment that speaks OpenAI's protocol. The chain's asynchronous clients
reach them through deployment handles (what ``http_async_client=`` of the client classes is for); what a chain does synchronously, the
filling of a store at import above all, goes through a server of the same models beside it. There are no deadlines: calls wait first come,
first served in Serve's router, beyond ``--ongoing`` at a replica.
"""

# no postponed annotations: FastAPI reads those of a class that Serve sends by value, where names cannot be looked up
import argparse
import gc
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import ray
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from ray import serve

web = FastAPI()
ENGINE_ERROR = b'{"error": {"message": "engine"}}'


@serve.deployment
class Model:
    """One model of ``patchwork.yaml``, or a packaged one, behind OpenAI's routes; its engine is the one that all systems use."""

    def __init__(self, name: str, config: str | None) -> None:
        self._name, self._config = name, config
        self._host: Any = None

    async def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        from patchwork_adapters.protocol import decode_response

        host = await self._started()
        reply = await host.call(_frame(path, body, stream=False))
        if reply.error is not None:
            return reply.error.status, ENGINE_ERROR
        response = decode_response(b"".join(reply.payloads))
        return response.status, response.body

    async def stream(self, path: str, body: bytes) -> AsyncIterator[int | bytes]:
        """The status, then the events of the answer."""
        from patchwork_adapters.protocol import decode_response

        host = await self._started()
        status = None
        async for reply in host.stream(_frame(path, body, stream=True)):
            for payload in reply.payloads:
                if status is None:
                    status = decode_response(payload).status
                    yield status
                else:
                    yield payload
            if reply.error is not None:
                yield reply.error.status if status is None else ENGINE_ERROR
                return

    async def _started(self) -> Any:
        if self._host is None:
            from patchwork_serving.config import Paths, load_config
            from patchwork_serving.models.hosts import ModelHosts

            config = load_config(Path(self._config) if self._config else None)
            self._host = ModelHosts(config, Paths.from_env(), engine_args={})
        return await self._host.get(self._name)


def _frame(path: str, body: bytes, *, stream: bool) -> Any:
    from patchwork_adapters.protocol import HttpRequest, encode_request
    from patchwork_serving.wire import CallFrame

    request = HttpRequest("POST", path, {"content-type": "application/json"}, body)
    return CallFrame(
        id=os.urandom(8).hex(), request_id="", leaf="", method=f"POST {path}", payload=encode_request(request), stream=stream
    )  # fmt: skip


@serve.deployment
@serve.ingress(web)
class Chain:
    """The user's chain; its model clients call the deployments."""

    def __init__(self, target: str, benchmarks: str, models: dict[str, Any]) -> None:
        sys.path.insert(0, benchmarks)
        # by name: Serve sends this class by value, without what its module holds
        from baselines.composed import calls_through_handles
        from baselines.loading import load_chain

        self._chain = load_chain(target)
        calls_through_handles(models)

    @web.post("/invoke")
    async def invoke(self, body: dict[str, Any]) -> dict[str, Any]:
        from langchain_core.load import dumpd

        value = body["input"]
        if hasattr(self._chain, "ainvoke"):
            return {"output": dumpd(await self._chain.ainvoke(value))}
        ask = self._chain.achat if hasattr(self._chain, "achat") else self._chain.aquery
        return {"output": str(await ask(value))}

    @web.post("/stream")
    async def stream(self, body: dict[str, Any]) -> StreamingResponse:
        return StreamingResponse(self._events(body["input"]), media_type="text/event-stream")

    async def _events(self, value: Any) -> AsyncIterator[bytes]:
        """As LangServe writes them: what the chain streams, then the end."""
        from langchain_core.load import dumps

        async for chunk in self._chain.astream(value):
            yield b"event: data\ndata: " + dumps(chunk).encode() + b"\n\n"
        yield b"event: end\n\n"


class Handles(httpx.AsyncBaseTransport):
    """Requests of an OpenAI client as calls of deployments."""

    def __init__(self, models: dict[str, Any]) -> None:
        self._models = models

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        import orjson

        body = await request.aread()
        document = orjson.loads(body)
        handle = self._models[document["model"]]
        path = "/v1/" + request.url.path.partition("/v1/")[2]
        if document.get("stream"):
            pieces = handle.options(stream=True).stream.remote(path, body)
            status = await anext(pieces)
            return httpx.Response(
                status, headers={"content-type": "text/event-stream"}, stream=Pieces(pieces), request=request
            )
        status, content = await handle.answer.remote(path, body)
        return httpx.Response(status, headers={"content-type": "application/json"}, content=content, request=request)


class Pieces(httpx.AsyncByteStream):
    """The rest of a streamed answer."""

    def __init__(self, pieces: Any) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._pieces:
            yield piece

    async def aclose(self) -> None:
        self._pieces.cancel()


def calls_through_handles(models: dict[str, Any]) -> None:
    """Give every asynchronous OpenAI client of this process the transport, as its ``http_async_client`` argument would."""
    import openai

    for client in [one for one in gc.get_objects() if isinstance(one, openai.AsyncOpenAI)]:
        client._client._transport = Handles(models)
        client._client._mounts = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--config")
    parser.add_argument("--replicas", type=int, default=1, help="of each deployment, uniform; 0: Serve's autoscaler")
    parser.add_argument("--engines", type=int, default=1, help="replicas of a model at most: what the machine has")
    parser.add_argument("--ongoing", type=int, default=100, help="max_ongoing_requests of a replica")
    options = parser.parse_args()
    benchmarks = str(Path(__file__).parents[1])
    # replicas find this file's classes by name
    path = os.pathsep.join([benchmarks, os.environ.get("PYTHONPATH", "")])
    ray.init(
        include_dashboard=False, configure_logging=True, logging_level="warning", num_cpus=16,
        runtime_env={"env_vars": {"PYTHONPATH": path, **_passed_on()}},
    )  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": options.port})
    light = {"ray_actor_options": {"num_cpus": 0.1}, "max_ongoing_requests": options.ongoing}
    models = {
        name: Model.options(name=f"model-{n}", **_sized(options.replicas, options.engines), **light).bind(
            name, options.config
        )
        for n, name in enumerate(options.model)
    }
    chain = Chain.options(**_sized(options.replicas, 8), **light).bind(options.target, benchmarks, models)
    serve.run(chain, route_prefix="/", name="composed")
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    print("ready", flush=True)
    stop.wait()
    serve.shutdown()
    ray.shutdown()


def _sized(replicas: int, most: int) -> dict[str, Any]:
    if replicas:
        return {"num_replicas": min(replicas, most)}
    return {"autoscaling_config": {"min_replicas": 1, "max_replicas": most}}


def _passed_on() -> dict[str, str]:
    prefixes = ("OPENAI_", "PATCHWORK_", "DATABASE_URL")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes) or name.endswith("_MODEL")}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from baselines import composed

    composed.main()  # by its importable name, so that what is pickled is found in replicas
