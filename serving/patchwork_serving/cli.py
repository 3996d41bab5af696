"""``patchwork``: the command line. Each command imports what it needs when it runs, so that ``--help`` answers at once.

Facts go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 used wrongly.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from patchwork_serving.cli_faults import run_reported

app = typer.Typer(
    name="patchwork",
    help="Serve an unmodified LangChain, LangGraph or LlamaIndex RAG application as separately scaled components.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="file.py, file.py:attr or pkg.mod:attr", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show tracebacks.")]
OptionalName = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="The application; default: all.", show_default=False)
]


@app.command()
def inspect(
    target: Target,
    inputs: Annotated[
        Path | None, typer.Option("--inputs", help="Sample inputs to run, one JSON value a line.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")] = False,
    verbose: Verbose = False,
) -> None:
    """Show what a chain splits into, and what stays opaque."""
    from patchwork_serving import cli_inspect

    cli_inspect.inspect(target, inputs, as_json=as_json, mermaid=mermaid)


@app.command()
def check(
    target: Target,
    inputs: Annotated[Path, typer.Option("--inputs", help="Inputs to run: one JSON value a line.", show_default=False)],
    replay: Annotated[
        bool,
        typer.Option(
            "--replay", help="Ask models once for each thing and replay their answers: for models that cost or vary."
        ),
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> int:
    """Run a chain as it is and taken apart, in every mode that it has, and compare answers and leaf calls."""
    from patchwork_serving import cli_check

    return cli_check.check(target, inputs, as_json=as_json, replay=replay)


@app.command()
def deploy(
    target: Target,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the application; default: the file's name.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    slo: Annotated[str | None, typer.Option("--slo", help="Deadline of a request, for example 2s.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="patchwork.yaml; default: the one beside the target.")
    ] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", min=1, help="Replicas of the HTTP ingress.")] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="Replicas, batches and resources, as `patchwork plan` made them.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", help="Make a plan for this machine from what `patchwork profile` measured."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="With --profile: requests/s to sustain; default: as many as there can be."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when it is ready; `patchwork down` stops it.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Serve a chain over HTTP.

    Prints the URL when it is ready. Ctrl-C stops it; with --detach, `patchwork down` does.
    """
    from patchwork_serving import cli_deploy

    wish = cli_deploy.Wish(target, name, host, port, slo, config, replicas, detach, plan, profile, rate)
    cli_deploy.deploy(wish, as_json=as_json)


@app.command()
def profile(
    target: Target,
    inputs: Annotated[
        Path, typer.Option("--inputs", help="Sample inputs to run: one JSON value a line.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Write the profile here.", show_default=False)],
    components: Annotated[
        list[str] | None,
        typer.Option("--components", help="Measure only these (repeat, or with commas); needs --reuse."),
    ] = None,
    reuse: Annotated[
        Path | None, typer.Option("--reuse", help="Stored profile to take the other components from.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Sample inputs to run, at most.")] = 20,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, max=1024, help="Largest batch to try.")] = 64,
    min_gain: Annotated[
        float,
        typer.Option(
            "--min-gain", help="Stop when two doublings of the batch together complete less than this share more."
        ),
    ] = 0.1,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Longest time for one component; default: 40s, and 120s for all together."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="patchwork.yaml; default: the one beside the target.")
    ] = None,
    input_key: Annotated[str | None, typer.Option("--input-key", help="Run only this field of each input.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Measure each component of a chain where it will run: seconds by batch and tokens, memory, start."""
    from patchwork_serving import cli_profile

    wish = cli_profile.Wish(
        target, inputs, output, tuple(components or ()), reuse, samples, max_batch, min_gain, budget, config, input_key
    )
    cli_profile.profile(wish, as_json=as_json)


@app.command()
def plan(
    target: Target,
    profile: Annotated[Path, typer.Option("--profile", help="What `patchwork profile` measured.", show_default=False)],
    slo: Annotated[str | None, typer.Option("--slo", help="Deadline of a request, for example 2s.")] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Requests/s to sustain; default: as many as the resources bear.")
    ] = None,
    cpus: Annotated[float | None, typer.Option("--cpus", help="Cores to use; default: those of this machine.")] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", help="GPUs to use; default: those of this machine.")] = None,
    resources: Annotated[
        Path | None, typer.Option("--resources", help="JSON file of nodes, instead of --cpus and --gpus.")
    ] = None,
    max_utilisation: Annotated[
        float | None, typer.Option("--max-utilisation", help="Share of each component's capacity to use, at most 1.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="patchwork.yaml; default: the one beside the target.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the plan here.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Say how many replicas of each component carry a rate within an SLO."""
    from patchwork_serving import cli_plan

    wish = cli_plan.Wish(target, profile, slo, rate, cpus, gpus, resources, max_utilisation, config, output)
    cli_plan.plan(wish, as_json=as_json)


@app.command()
def simulate(
    plan: Annotated[Path, typer.Option("--plan", help="What `patchwork plan` wrote.", show_default=False)],
    profile: Annotated[Path, typer.Option("--profile", help="What `patchwork profile` measured.", show_default=False)],
    arrivals: Annotated[
        str, typer.Option("--arrivals", help="poisson:RATE, gamma:RATE:CV, or a trace file.", show_default=False)
    ],
    policy: Annotated[
        str, typer.Option("--policy", help="least_slack, edf, fifo, paper, ideal (one queue for all replicas), or all.")
    ] = "all",
    rate: Annotated[float | None, typer.Option("--rate", help="Requests/s; default: those of the arrivals.")] = None,
    slo: Annotated[
        str | None, typer.Option("--slo", help="Deadline; default: the plan's, else twice an unloaded request.")
    ] = None,
    requests: Annotated[
        int | None, typer.Option("--requests", help="How many; default: 5000, or the whole trace.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal results.")] = 0,
    target_share: Annotated[
        float | None,
        typer.Option("--target-share", min=0, max=1, help="Of the requests let in, to be in time; default: 0.8."),
    ] = None,
    step_tokens: Annotated[
        int | None, typer.Option("--step-tokens", min=1, help="Most tokens of one step of LLM engines; default: 8192.")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Say how a plan would keep its deadlines under given arrivals, without deploying."""
    from patchwork_serving import cli_simulate

    wish = cli_simulate.Wish(plan, profile, arrivals, policy, rate, slo, requests, seed, target_share, step_tokens)
    cli_simulate.run(wish, as_json=as_json)


@app.command()
def status(
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every two seconds, until Ctrl-C.")] = False,
    verbose: Verbose = False,
) -> None:
    """Show what runs on this machine."""
    from patchwork_serving import cli_status

    cli_status.status(as_json=as_json, watch=watch)


@app.command()
def logs(
    name: OptionalName = None,
    component: Annotated[
        str | None, typer.Option("--component", help="Only this component; `ingress` is the HTTP side.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines are written, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines of each file.")] = 50,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show the logs of an application's replicas."""
    from patchwork_serving import cli_logs

    cli_logs.logs(name, component, follow=follow, lines=lines, as_json=as_json)


@app.command()
def invoke(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An application of this machine, or a URL.", show_default=False)
    ],
    question: Annotated[
        str, typer.Argument(metavar="INPUT", help="The chain's input: JSON, or plain text.", show_default=False)
    ],
    trace: Annotated[bool, typer.Option("--trace", help="Draw where the time went.")] = False,
    content: Annotated[bool, typer.Option("--content", help="With --trace: prompts and documents too.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    timeout: Annotated[str, typer.Option("--timeout", help="How long to wait, for example 30s.")] = "120s",
    header: Annotated[list[str] | None, typer.Option("--header", help="NAME: VALUE, sent with the request.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Ask an application one question."""
    from patchwork_serving import cli_invoke

    ask = cli_invoke.Ask(
        name, question, trace=trace or content, content=content, stream=stream, timeout=timeout, headers=header or ()
    )
    cli_invoke.invoke(ask, as_json=as_json)


@app.command()
def bench(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An application of this machine, or a URL.", show_default=False)
    ],
    inputs: Annotated[
        Path, typer.Option("--inputs", help="Inputs to send: one JSON value a line.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the report.", show_default=False)],
    arrivals: Annotated[str, typer.Option("--arrivals", help="poisson, gamma:CV, or a trace's file.")] = "poisson",
    rate: Annotated[
        str | None, typer.Option("--rate", help="Requests per second; several with commas between are tried in turn.")
    ] = None,
    slo: Annotated[
        str | None,
        typer.Option("--slo", help="In time is within this, for example 2s; default: twice the unloaded mean."),
    ] = None,
    duration: Annotated[str, typer.Option("--duration", help="Of the steady state.")] = "30s",
    requests: Annotated[
        int | None, typer.Option("--requests", min=1, help="How many to count, instead of a duration.")
    ] = None,
    warmup: Annotated[str, typer.Option("--warmup", help="Of load that is sent first and not counted.")] = "5s",
    api: Annotated[
        str, typer.Option("--api", help="langserve, openai, or json: the input is posted as it is.")
    ] = "langserve",
    stream: Annotated[bool, typer.Option("--stream", help="Ask for streams, and time their first chunks.")] = False,
    model: Annotated[str | None, typer.Option("--model", help="With --api openai; default: the first listed.")] = None,
    input_key: Annotated[str | None, typer.Option("--input-key", help="Send only this field of each input.")] = None,
    header: Annotated[list[str] | None, typer.Option("--header", help="NAME: VALUE, sent with each request.")] = None,
    tell_deadline: Annotated[
        bool, typer.Option("--tell-deadline", help="Send the SLO as x-request-timeout-seconds.")
    ] = False,
    timeout: Annotated[
        str | None, typer.Option("--timeout", help="How long to wait for an answer; default: 10 x SLO.")
    ] = None,
    connections: Annotated[int, typer.Option("--connections", min=1, max=20_000, help="At most at once.")] = 1024,
    seed: Annotated[int, typer.Option("--seed", help="Of the arrivals.")] = 1,
    max_requests: Annotated[int, typer.Option("--max-requests", min=1, help="Refuse to send more.")] = 100_000,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> int:
    """Load an application, ours or not, and report what came back in time.

    Requests leave when the arrivals say so, whether or not earlier ones were answered. Ctrl-C writes what there is.
    """
    from patchwork_serving import cli_bench

    chosen = cli_bench.load_options(
        api=api, slo=slo, duration=duration, timeout=timeout, requests=requests, warmup=warmup, stream=stream, model=model,
        tell_deadline=tell_deadline, connections=connections, seed=seed, max_requests=max_requests,
    )  # fmt: skip
    wish = cli_bench.Wish(name, arrivals, inputs, input_key, rate, output, header or (), chosen)
    return cli_bench.bench(wish, as_json=as_json)


@app.command()
def down(name: OptionalName = None, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Stop an application, or all of them.

    With the last one, the Ray and Postgres that were started for it stop too.
    """
    from patchwork_serving import cli_deploy

    cli_deploy.down(name, as_json=as_json)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def models(ctx: typer.Context) -> None:
    """List, fetch and serve models."""
    from patchwork_serving.models.cli import app as models_app

    # mounted here and not at import, because the registry costs more than a whole `--help`
    code = models_app(args=ctx.args, prog_name=ctx.command_path, standalone_mode=False)
    raise typer.Exit(code if isinstance(code, int) else 0)


@app.command()
def doctor(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Show what is missing on this machine and how to get it."""
    from patchwork_serving import cli_doctor

    if not cli_doctor.doctor(as_json=as_json):
        raise typer.Exit(1)


@app.command()
def version(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of patchwork.yaml.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Print the version."""
    from patchwork_serving import cli_version

    cli_version.version(schema=schema, as_json=as_json)


def run(args: Sequence[str] | None = None) -> int:
    """One command; returns its exit code and never raises."""
    given = list(sys.argv[1:] if args is None else args)
    options = given[: given.index("--")] if "--" in given else given
    return run_reported(
        lambda: app(args=given, prog_name="patchwork", standalone_mode=False), verbose="--verbose" in options
    )


def main() -> None:
    """Entry point of the ``patchwork`` command."""
    sys.exit(run())


if __name__ == "__main__":
    main()
