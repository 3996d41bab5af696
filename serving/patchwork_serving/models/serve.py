"""Runs the model server in the foreground: bind, load, tell the URL, serve until a signal comes, free everything."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI

from patchwork_serving.cli_output import fact, fact_json, note
from patchwork_serving.cli_progress import progress_display
from patchwork_serving.config import Config, Paths
from patchwork_serving.errors import PortTaken
from patchwork_serving.models.server import ModelServer, ServeOptions

DRAIN_S = 5  #: what answers in flight are given after Ctrl-C


def serve_until_stopped(
    options: ServeOptions, config: Config, paths: Paths, host: str, port: int, *, as_json: bool
) -> None:
    """Blocks. Raises PortTaken before anything is loaded, and whatever fetching or starting a model raises."""
    listener = bind(host, port)
    with listener, contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options, config, paths, listener, as_json=as_json))


async def _serve(
    options: ServeOptions, config: Config, paths: Paths, listener: socket.socket, *, as_json: bool
) -> None:
    with progress_display(as_json=as_json) as progress:
        server = ModelServer(options, config, paths, progress)
        try:
            await server.start()
        except BaseException:
            await server.close()
            raise

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        _tell(server, listener, as_json=as_json)
        try:
            yield
        finally:
            # here and not after serve(), which raises the signal that ended it again
            await server.close()

    app = server.app()
    app.router.lifespan_context = lifespan
    await uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=DRAIN_S)
    ).serve(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; PortTaken when there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise PortTaken(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another with --port, or --port 0"
        ) from error
    return listener


def _tell(server: ModelServer, listener: socket.socket, *, as_json: bool) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    names = {model.kind: model.name for model in reversed(server.models)}
    if as_json:
        fact_json({"event": "ready", "url": url, "models": [model.name for model in server.models]}, indent=None)
        return
    fact(f"export OPENAI_BASE_URL={url}")
    fact("export OPENAI_API_KEY=local")
    if "llm" in names:
        fact(f"export CHAT_MODEL={names['llm']}")
    if "embedder" in names:
        fact(f"export EMBED_MODEL={names['embedder']}")
    note(f"serving {', '.join(model.name for model in server.models)}; stop with Ctrl-C")
