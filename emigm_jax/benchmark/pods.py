"""Pods of fake processes, simulated on a clock of their own: signs of life at scale."""

import heapq
from collections.abc import Collection
from typing import NamedTuple

from emigm_jax.parallel import liveness

RATE = 10_000  # calls/s that a coordinator answers
_ENTRIES = 100  # of a folder that are sent in the time of one call


class Store:
    """A coordinator's store whose calls are answered one after another, each in its time.

    Attributes:
      now: seconds, of the process that calls.
      calls: so far.
    """

    def __init__(self, rate: float = RATE):
        self.now, self.calls, self._free, self._each = 0.0, 0, 0.0, 1 / rate
        self._folders: dict[str, dict[str, str]] = {}

    def _answer(self, entries=0):
        self.calls += 1
        self._free = max(self._free, self.now) + self._each * (1 + entries / _ENTRIES)
        self.now = self._free

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        """As a client of jaxlib; what is there stays unless `allow_overwrite`."""
        self._answer()
        folder = self._folders.setdefault(key.rpartition('/')[0], {})
        folder[key] = value if allow_overwrite else folder.get(key, value)

    def key_value_try_get(self, key: str) -> str:
        """As a client of jaxlib."""
        self._answer()
        return self._folders.get(key.rpartition('/')[0], {})[key]

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        """As a client of jaxlib."""
        found = self._folders.get(key.rstrip('/'), {})
        self._answer(len(found))
        return list(found.items())


class Lives(NamedTuple):
    """What came of a pod."""

    calls: float  # per process and beat
    ended: dict[int, tuple[float, str]]  # process that gave up: when, and what it said


def lives(
    processes: int,
    seconds: float,
    dies: Collection[int] = (),
    at: float = 0.0,
    rate: float = RATE,
) -> Lives:
    """Lets a pod live for so many simulated seconds.

    Args:
      dies: processes that give no sign of life from `at` seconds on; without the first one, the
        store does not answer either.
      rate: calls/s that are answered.
    """
    store, beats, ended = Store(rate), 0, {}
    watches = [liveness.Watch(store, i, processes, lambda: store.now) for i in range(processes)]
    due = [(liveness.BEAT, i) for i in range(processes)]  # all at once, which is the worst
    while due:
        store.now, who = heapq.heappop(due)
        if store.now > seconds:
            break
        if store.now >= at and who in dies:
            continue
        beats += 1
        if reason := watches[who].beat():
            ended[who] = (store.now, reason)
        else:
            heapq.heappush(due, (store.now + liveness.BEAT, who))
    return Lives(store.calls / max(1, beats), ended)
