"""When requests are sent: seconds from the start, fixed before the first one goes out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from patchwork_scheduler.errors import InvalidWorkload
from patchwork_scheduler.workload import at_rate, gamma, poisson, trace_times
from patchwork_serving.errors import UsageError

#: more in one run is a mistake more often than a wish
MAX_REQUESTS = 100_000

Arrivals = str | Path | Sequence[float]  #: ``poisson``, ``gamma:CV``, a trace's file, or the seconds themselves


def schedule(
    arrivals: Arrivals, rate: float | None, seconds: float | None, count: int | None, *, seed: int, limit: int
) -> list[float]:
    """The times within ``seconds``, or the first ``count``. Raises UsageError: no such arrivals, or more than ``limit``."""
    if not isinstance(arrivals, str | Path):
        return _within(sorted(arrivals), seconds, count, limit)
    try:
        return _within(_endless(str(arrivals), rate, seconds, count, seed), seconds, count, limit)
    except InvalidWorkload as error:
        raise UsageError(f"--arrivals: {error}") from error


def _endless(arrivals: str, rate: float | None, seconds: float | None, count: int | None, seed: int) -> Iterator[float]:
    kind, _, parameter = arrivals.partition(":")
    if kind == "poisson" and not parameter:
        return poisson(_needed(rate), seed)
    if kind == "gamma":
        return gamma(_needed(rate), _variation(parameter), seed)
    times = _trace(Path(arrivals))
    if rate is None:
        return at_rate(times, (len(times) - 1) / max(times[-1] - times[0], 1e-9))
    # the part that is used gets the rate that was asked for: the trace's own mean may be another at its beginning
    part = times[: max(2, count or round(rate * (seconds or 0.0)) + 1)]
    return at_rate(part if part[-1] > part[0] else times, rate)


def _needed(rate: float | None) -> float:
    if rate is None:
        raise UsageError("--rate is needed with poisson and gamma arrivals: requests per second")
    return rate


def _variation(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise UsageError(
            f"--arrivals: gamma needs the coefficient of variation of the gaps, above 0, as in gamma:4; not {text!r}"
        )
    return found


def _trace(path: Path) -> list[float]:
    try:
        with path.open(encoding="utf-8") as lines:
            times = trace_times(lines)
    except OSError as error:
        raise UsageError(
            f"--arrivals: poisson, gamma:CV or a trace's file, not {str(path)!r} ({error.strerror})"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--arrivals: {path} is no trace: CSV with a TIMESTAMP column, or JSON lines with timestamp"
        ) from error
    if not all(map(math.isfinite, times)) or len(set(times)) < 2:
        raise UsageError(f"--arrivals: {path} is no trace: it needs two arrivals at different times")
    return times


def _within(
    times: Iterator[float] | Sequence[float], seconds: float | None, count: int | None, limit: int
) -> list[float]:
    if count is not None:
        chosen = itertools.islice(times, count)
    else:
        end = seconds if seconds is not None else float("inf")
        chosen = itertools.takewhile(lambda at: at < end, times)  # type: ignore[assignment]
    found = list(itertools.islice(chosen, limit + 1))
    if len(found) > limit:
        raise UsageError(
            f"more than {limit} requests would be sent; lower the rate or the duration, or raise --max-requests"
        )
    if not found:
        raise UsageError("no request would be sent; raise the rate or the duration")
    return found
