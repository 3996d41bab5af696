"""Open-loop load against any URL, and what came of it: ``patchwork bench`` and the benchmark scripts.

report = run_load("http://127.0.0.1:8000", "poisson", inputs, LoadOptions(rate=20, duration_s=30))
"""

from patchwork_serving.bench.report import LoadReport
from patchwork_serving.bench.run import LoadOptions, load, run_load
from patchwork_serving.bench.sustain import Sustained, sustainable_rate

__all__ = ["LoadOptions", "LoadReport", "Sustained", "load", "run_load", "sustainable_rate"]
