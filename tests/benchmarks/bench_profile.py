"""How long ``patchwork profile`` takes for an application of five components with the packaged models.

    python tests/benchmarks/bench_profile.py [-o docs/benchmarks/profile.json]

The components of ``examples/adaptive_rag.py``, each part of which gets a model of its own: an embedder, a vector store, and three LLMs. The
time is the command's own, from its start to its end: Ray, Postgres and the replicas start and stop within it. Run it with nothing else
beside, and with the models fetched.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kit.deployed import EXAMPLES, QUESTIONS, a_home
from kit.sustained import CoresBusy
from patchwork_scheduler.profile_model import ComponentProfile, Profile

TARGET = str(EXAMPLES / "adaptive_rag.py")
PARTS = ("grader", "rewriter", "generator")
SAMPLES = 20
TARGET_S = 240.0


def measure() -> dict[str, Any]:
    with a_home() as home:
        samples, config, file = (home.path / name for name in ("samples.jsonl", "patchwork.yaml", "profile.json"))
        samples.write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS[:SAMPLES]), encoding="utf-8")
        models = {part: {"source": "packaged:smollm2-135m-instruct"} for part in PARTS}
        config.write_text(json.dumps({"models": models}), encoding="utf-8")
        began = time.monotonic()
        with CoresBusy(0.0, 10_000.0, []) as busy:
            busy.begin("load", "")
            result = home.run(
                "profile", TARGET, "--inputs", str(samples), "--config", str(config), "-o", str(file),
                timeout_s=900.0, env={f"{part.upper()}_MODEL": part for part in PARTS},
            )  # fmt: skip
            seconds = time.monotonic() - began
            cores_busy, _ = busy.cores()
        print(result.stdout, result.stderr, file=sys.stderr)
        assert result.returncode == 0, result.stderr
        found = Profile.load(file)
    return {
        "what": (__doc__ or "").splitlines()[0],
        "target": "examples/adaptive_rag.py",
        "seconds": round(seconds, 1),
        "within_four_minutes": seconds < TARGET_S,
        "samples": found.origin.samples,
        "components": {c.id: _told(c) for c in found.components},
        "cores": os.cpu_count(),
        "cores_busy": round(cores_busy, 2),
        "machine": found.origin.machine,
        "versions": found.origin.versions,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _told(component: ComponentProfile) -> dict[str, Any]:
    (measured,) = component.measured
    return {
        "visits": round(component.visits, 2),
        "batches": sorted({p.batch for p in measured.points}),
        "fit_error": measured.fit_error,
        "cold_start_s": measured.cold_start_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    document = measure()
    print(json.dumps(document, indent=1))
    if options.output is not None:
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
