"""How long the pieces of streams wait for each other, where they leave a process (design D9).

A piece costs the processes that it passes a few milliseconds of processor time, whether it holds one token or ten. So the more streams a
process carries, the longer each of them gathers: few streams are not delayed to speak of, many send some eight pieces a second each. The
time runs from one piece to the next: what comes after a silence leaves at once, and so does what a stream begins with.
"""

from __future__ import annotations

PER_STREAM_S = 0.002
#: Above this a reader sees text come in jerks.
MAX_S = 0.12
#: Pieces at the start of a stream that wait for nothing: a response's head, who speaks, and the first token may each be one.
AT_ONCE = 3


def pause_s(streams: int, sent: int) -> float:
    """Seconds to gather after a stream's piece number ``sent`` (the first is 1), in a process that carries ``streams`` of them."""
    return 0.0 if sent < AT_ONCE else min(MAX_S, PER_STREAM_S * streams)
