"""A real embedded deployment: what its plan predicts against what it sustains.

    python tests/benchmarks/bench_plan_embedded.py [-o docs/benchmarks/plan_embedded.json]

The demo chain (``examples/vanilla_rag.py``) with the packaged models: profiled, planned with one replica of everything for this machine,
deployed by that plan and loaded as ``patchwork bench`` does, open loop (``tests/kit/sustained.py`` says how, and what counts). Every
question is another, made of two of the example's, and llama.cpp's cache of prompts is off: the same passages come again and again, and what
was read before costs nothing, which no profile of single calls foresees (``--prompt-cache`` leaves it on, as deployments do). The models'
work is what keeps the cores busy here, so the machine is meant to be the limit: run it with nothing else beside. Where other programs kept
more than a seventh of the cores busy, nothing is claimed; nor where the profile made again after the load differs by more than a tenth:
then the machine itself became faster or slower.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kit.deployed import EXAMPLES, QUESTIONS, ROOT, Home, a_home, deployed
from kit.sustained import Loads, Sustains, sustains
from patchwork_scheduler.plan_model import Plan
from patchwork_scheduler.profile_model import Profile

TARGET = str((EXAMPLES / "vanilla_rag.py").relative_to(ROOT))  #: as told in the profile that is kept
SAMPLES = 20
OTHERS = 0.15  #: of the machine's cores
STEADY = 0.1  #: of the predicted rate: what a machine may become faster or slower meanwhile
UNCACHED = {
    "smollm2-135m-instruct": {
        "source": "packaged:smollm2-135m-instruct", "engine_args": {"cache_prompt": False, "cache_ram_mib": 0},
    }
}  # fmt: skip
#: Requests count as in time up to so many times the path with full batches: the other half is for waiting.
SLO_FACTOR = 2.0


def questions() -> list[str]:
    """Pairs of questions in an order that is the same every time."""
    pairs = [f"{first} {second}" for first, second in itertools.permutations(QUESTIONS, 2)]
    random.Random(0).shuffle(pairs)
    return pairs


def configured(home: Home, name: str, models: dict[str, Any], **more: Any) -> Path:
    file = home.path / f"{name}.yaml"
    file.write_text(json.dumps({"models": models, **more}), encoding="utf-8")
    return file


def profiled(home: Home, name: str, models: dict[str, Any]) -> Path:
    samples, file = home.path / "samples.jsonl", home.path / f"{name}.json"
    samples.write_text("".join(json.dumps(question) + "\n" for question in questions()[:SAMPLES]), encoding="utf-8")
    config = configured(home, name, models)
    _ran(home, "profile", TARGET, "--inputs", str(samples), "--config", str(config), "-o", str(file))
    return file


def planned(home: Home, profile: Path, models: dict[str, Any]) -> Path:
    """With one replica of everything: how many more there could be is another question."""
    file = profile.with_suffix(".plan.json")
    ids = [c.id for c in Profile.load(profile).components if not c.external]
    config = configured(home, "plan", models, components={name: {"replicas": 1} for name in ids})
    _ran(home, "plan", TARGET, "--profile", str(profile), "--config", str(config), "-o", str(file))
    return file


def measure(home: Home, plan: Path, loads: Loads, models: dict[str, Any]) -> Sustains:
    found = Plan.load(plan)
    slo_s = SLO_FACTOR * found.full_batch_path_s
    config = configured(home, "deploy", models, scheduler={"admission": "off"})
    asked = iter(questions()[SAMPLES:])
    options = ("--config", str(config), "--plan", str(plan), "--slo", f"{slo_s:.2f}s")
    with deployed(home, TARGET, *options) as url:
        return sustains(
            url,
            found.rate_per_s,
            slo_s,
            loads,
            lambda _, count: list(itertools.islice(asked, count)),
            home.ray_processes,
        )


def _ran(home: Home, *arguments: str) -> None:
    result = home.run(*arguments, timeout_s=600.0)
    print(result.stdout, file=sys.stderr)
    assert result.returncode == 0, result.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--warm", type=float, default=20.0, help="seconds before anything counts, of each load")
    parser.add_argument("--window", type=float, default=80.0, help="seconds that count")
    parser.add_argument("--prompt-cache", action="store_true", help="leave llama.cpp's cache of prompts on")
    options = parser.parse_args()
    loads = Loads(options.warm, options.window)
    models = {} if options.prompt_cache else UNCACHED
    with a_home() as home:
        profile = profiled(home, "before", models)
        plan = planned(home, profile, models)
        found = measure(home, plan, loads, models)
        again = Plan.load(planned(home, profiled(home, "after", models), models)).rate_per_s
        drift = again / found.predicted_per_s - 1
        quiet = found.others_busy <= OTHERS * (os.cpu_count() or 1) and abs(drift) <= STEADY
        document: dict[str, Any] = {
            "what": (__doc__ or "").splitlines()[0],
            **found.to_json(),
            "prompt_cache": options.prompt_cache,
            "others_busy": found.others_busy,
            "predicted_again_per_s": again,
            "within_15_percent": found.is_within if quiet else None,
            "core_s": Plan.load(plan).core_s,
            "bottleneck": Plan.load(plan).bottleneck,
            "cores": os.cpu_count(),
            "date": datetime.now(UTC).date().isoformat(),
            "profile": Profile.load(profile).to_json(),
        }
    print(json.dumps({name: value for name, value in document.items() if name != "profile"}, indent=1))
    if options.output is not None:
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
