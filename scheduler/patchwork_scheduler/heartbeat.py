"""Whether a replica lives, as one sender hears it. Pure: ``now`` is an argument.

Replies, and pieces of them, are signs of life. A replica that owes one and is silent is asked for its *pulse*: a small call beside the
others, which costs nothing while replies come. One that leaves the question open, or says itself that its engine does not move, is suspect
until it has answered well some times in a row; each time that it falls back soon after, it takes twice as many.
"""

from __future__ import annotations

from dataclasses import dataclass

#: How often the watcher looks at all replicas that owe something.
TICK_S = 0.1
#: A replica that owes something is asked after so long a silence. With the limit below: suspect at most 0.95 s after its last sign of life.
ASK_AFTER_S = 0.25
#: How long a question may stay open. Event loops of busy replicas answer within some 0.01 s.
ANSWER_WITHIN_S = 0.5
#: Good answers in a row that clear a suspect, at first, and at most.
PROOFS = 3
PROOFS_AT_MOST = 48
#: One that falls back within so many seconds of being cleared must give twice as many.
RELAPSE_S = 30.0


@dataclass(slots=True)
class Heart:
    """Of one replica. The watcher's own pauses (its event loop was busy) do not count as silence: see :meth:`tick`."""

    suspect: bool = False
    watched_until: float = float("-inf")  #: so long its silence would be noticed
    _ticked: float = float("-inf")
    _silent_s: float = ASK_AFTER_S  # since the last sign of life: who has never been heard is asked at once
    _open_s: float = 0.0  # how long a question is open
    _asked_s: float = ASK_AFTER_S  # since it was last put
    _is_asked: bool = False
    _proofs: int = 0
    _needed: int = PROOFS
    _cleared_at: float = float("-inf")

    def tick(self, now: float, owes: bool) -> bool:
        """Look at it; whether it is to be asked now. ``owes``: an answer of it is outstanding."""
        elapsed = min(max(now - self._ticked, 0.0), 2.0 * TICK_S)
        self._ticked, self.watched_until = now, now + ANSWER_WITHIN_S
        self._silent_s += elapsed
        self._asked_s += elapsed
        if self._is_asked or self._open_s > 0.0:
            self._open_s += elapsed
            if self._open_s > ANSWER_WITHIN_S:
                self._suspect(now)
        if self._is_asked or not (owes or self.suspect) or min(self._silent_s, self._asked_s) < ASK_AFTER_S:
            return False
        self._is_asked, self._asked_s = True, 0.0
        return True

    def heard(self) -> None:
        """A reply came, or a piece of one."""
        self._silent_s = self._open_s = 0.0

    def answered(self, now: float, *, well: bool) -> None:
        """It gave its pulse. ``well``: its engine lives and moves."""
        self._is_asked = False
        self.heard()
        if not well:
            self._suspect(now)
            return
        self._proofs += 1
        if self.suspect and self._proofs >= self._needed:
            self.suspect, self._cleared_at = False, now

    def unanswered(self) -> None:
        """The question was lost on its way, or another one answered in its place: it stays open."""
        self._is_asked = False
        self._open_s = max(self._open_s, 1e-9)

    def _suspect(self, now: float) -> None:
        self._proofs = 0
        if not self.suspect:
            relapsed = now - self._cleared_at < RELAPSE_S
            self._needed = min(2 * self._needed, PROOFS_AT_MOST) if relapsed else PROOFS
            self.suspect = True
