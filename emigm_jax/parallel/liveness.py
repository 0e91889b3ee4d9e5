"""Signs of life of the processes of a run, at two calls of each per beat however many they are.

Every process counts up a key of its own in the coordinator's store. The first one, beside which the
store lives, reads all of them in one call and publishes whom it misses together with its own count;
the others read that one key. So a coordinator that answers 10,000 calls/s is busy with 1,024
processes for a tenth of a beat; `emigm benchmark scale` plays it through.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Protocol

BEAT, SILENCE = 2.0, 30.0  # seconds between signs of life, and without one until a process is dead
LINGER = 2 * BEAT  # the store ends with the first process: the others read first whom it misses
_SIGNS, _FOUND = 'emigm/alive/', 'emigm/missed'
_GONE = 'gone'
_NAMED = 8  # processes in a line


class Store(Protocol):
    """The coordinator's store, as a client of jaxlib has it. Its calls raise where none answers."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        """Sets a key."""
        ...

    def key_value_try_get(self, key: str) -> str:
        """Its value; raises where there is none."""
        ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        """All (key, value) below a key that ends with '/'."""
        ...


class Watch:
    """What one process says of itself and learns of the others.

    Args:
      store: that of the coordinator.
      me, count: this process and how many there are.
      clock: seconds that only grow.
    """

    def __init__(
        self, store: Store, me: int, count: int, clock: Callable[[], float] = time.monotonic
    ):
        self._store, self._me, self._clock = store, me, clock
        self._beats = 0
        # (what was read last, since when it is the same) of whom this process listens to.
        others = range(1, count) if me == 0 else (0,)
        self._heard: dict[int, tuple[str, float]] = {i: ('', clock()) for i in others}
        self._answered = clock()

    def beat(self, leaving: bool = False) -> str:
        """One sign of life and a look at the others.

        Args:
          leaving: this process ends as it should, so that nobody misses it. When the first one has
            left, jax's own, slower heartbeats are what is left.

        Returns:
          why the run cannot go on; '' if it can.
        """
        self._beats += 1
        try:
            lost = self._look(leaving) if self._me == 0 else self._report(leaving)
            self._answered = self._clock()
        except Exception:  # of whatever jaxlib raises where there is no answer
            if self._clock() - self._answered <= SILENCE:
                return ''
            return 'process 0 of this run does not answer any more'
        return lost

    def _look(self, leaving):
        """Of the first process."""
        for key, sign in self._store.key_value_dir_get(_SIGNS):
            self._hear(int(key.removeprefix(_SIGNS)), sign)
        names = ','.join(map(str, self._silent()))
        found = _GONE if leaving else f'{self._beats} {names}'
        self._store.key_value_set(_FOUND, found, allow_overwrite=True)
        return _described(names)

    def _report(self, leaving):
        """Of the others."""
        sign = _GONE if leaving else str(self._beats)
        self._store.key_value_set(f'{_SIGNS}{self._me}', sign, allow_overwrite=True)
        with contextlib.suppress(Exception):  # nothing published yet
            found = self._store.key_value_try_get(_FOUND)
            self._hear(0, found)
            if names := found.partition(' ')[2]:
                return _described(names)
        return _described(','.join(map(str, self._silent())))

    def _hear(self, who, sign):
        if sign == _GONE:
            self._heard.pop(who, None)
        elif who in self._heard and self._heard[who][0] != sign:
            self._heard[who] = (sign, self._clock())

    def _silent(self):
        return [i for i, (_, since) in self._heard.items() if self._clock() - since > SILENCE]


def _described(names):
    if not names:
        return ''
    every = names.split(',')
    if len(every) == 1:
        return f'process {names} of this run has ended or does not answer any more'
    shown = ', '.join(every[:_NAMED]) + f' and {len(every) - _NAMED} more' * (len(every) > _NAMED)
    return f'processes {shown} of this run have ended or do not answer any more'
