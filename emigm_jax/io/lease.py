"""Who works in a folder, local or gs://: one process at a time, until it leaves or is gone.

    FOLDER/lease.json   owner, machine, process, when it began and when it gave a sign of life

An owner on this machine is gone when its process is: a run that was killed starts again at once.
One on another machine, or in another container, is gone when no sign of life comes for `SILENCE`
seconds, which whoever comes next waits for, if need be. An owner that was taken for gone by mistake
(it was suspended, a clock is wrong) learns of it by its next sign of life, and ends.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from etils import epath

from emigm_jax.errors import UserError, printable
from emigm_jax.io import gcs, swap
from emigm_jax.io.paths import absolute

FILE = 'lease.json'
BEAT, SILENCE = 10.0, 60.0  # seconds between signs of life, and without one until an owner is gone

Say = Callable[[str], object]


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process that works in a folder."""

    token: str  # of this work of its, and no other
    host: str  # its name, for people
    machine: str  # what processes are counted in: a boot of a system, and a container there
    process: int
    born: str  # of the process, which tells it from a later one of the same number
    alive: float  # its last sign of life, seconds since 1970


@dataclasses.dataclass(frozen=True)
class Clock:
    """The time, and how it passes."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


SYSTEM = Clock()


def me(clock: Clock) -> Owner:
    """This process as an owner."""
    pid = os.getpid()
    return Owner(uuid.uuid4().hex, socket.gethostname(), _machine(), pid, born(pid), clock.now())


@functools.cache
def _machine():
    with contextlib.suppress(OSError):
        boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        return f'{socket.gethostname()} {boot} {os.readlink("/proc/self/ns/pid")}'
    return socket.gethostname()


def born(process: int) -> str:
    """When a process of this machine began, in the system's own terms; '' if it has ended."""
    try:
        # After the name, which may hold anything: state, 18 numbers, ticks since the boot.
        after = pathlib.Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
        return '' if after[0] in 'ZX' else after[19]
    except FileNotFoundError:
        pass
    if pathlib.Path('/proc/self/stat').exists():
        return ''
    try:  # a system without /proc, where the number must do
        os.kill(process, 0)
    except ProcessLookupError:
        return ''
    except OSError:
        pass
    return 'some time'


class Lease:
    """What a process has that works in a folder; `check` tells whether it still has it."""

    def __init__(self, folder: epath.Path, owner: Owner, seen: swap.Seen, clock: Clock):
        self._file, self._owner, self._seen, self._clock = folder / FILE, owner, seen, clock
        self._lost, self._over, self._after = threading.Event(), threading.Event(), None
        self._changing = threading.Lock()

    def check(self) -> None:
        """Raises UserError if another process has the folder by now."""
        if self._lost.is_set():
            by = f'taken over by {_named(self._after)}' if self._after else 'given up for gone'
            raise UserError(
                f'{self._file.parent}: this training was {by}, as no sign of life of it came for '
                f'{SILENCE:.0f} s, or {FILE} was changed; it ends, and saves nothing any more'
            )

    def beat(self) -> None:
        """Gives a sign of life, or finds that another has taken over."""
        with self._changing:
            if self._over.is_set():
                return
            self._owner = dataclasses.replace(self._owner, alive=self._clock.now())
            try:
                self._seen = swap.replace(self._file, _text(self._owner), self._seen)
            except swap.Changed:
                self._look()
            except UserError:
                pass  # the next one may be heard

    def _look(self):
        with contextlib.suppress(UserError):
            self._seen = swap.read(self._file)
            self._after = _owner(self._seen.text)
            if self._after is None or self._after.token != self._owner.token:
                self._lost.set()

    def keep(self) -> None:
        """Gives signs of life until `leave`."""
        while not self._over.wait(BEAT) and not self._lost.is_set():
            self.beat()

    def leave(self) -> None:
        """Frees the folder, if it is still this process's."""
        self._over.set()
        with self._changing, contextlib.suppress(swap.Changed, UserError):
            if not self._lost.is_set():
                swap.replace(self._file, '', self._seen)


@contextlib.contextmanager
def held(
    folder: os.PathLike | str, say: Say, work: str = 'training', place: str = '--workdir'
) -> Iterator[Lease]:
    """Around the work in a folder, whose only owner this process is.

    Args:
      folder: local or gs://; need not exist.
      say: gets a line if an owner elsewhere has to be waited for.
      work, place: what is done there and what names the folder, for messages.

    Raises:
      UserError: another process works there.
    """
    folder = absolute(folder)
    made = not (gcs.remote(folder) or folder.exists())
    lease = taken(folder, say, work=(work, place))
    keeper = threading.Thread(target=lease.keep, daemon=True)
    keeper.start()
    try:
        yield lease
    finally:
        lease.leave()
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # if nothing was put there


def taken(
    folder: epath.Path,
    say: Say,
    clock: Clock = SYSTEM,
    work: tuple[str, str] = ('training', '--workdir'),
) -> Lease:
    """A new `Lease`, when no other process works in `folder` or its owner is gone.

    Raises:
      UserError: as `held`.
    """
    mine, watched, end = me(clock), None, 0.0
    while True:
        seen = swap.read(folder / FILE)
        other, now = _owner(seen.text), clock.now()
        if other is not None:
            here = other.machine == mine.machine
            moved = watched is not None and other != watched
            if moved or (here and born(other.process) == other.born):
                raise UserError(
                    f'{folder}: another {work[0]} is at work there, {_named(other)}; wait for it, '
                    f'end it, or use another {work[1]}'
                )
            if watched is None:
                watched, end = other, min(other.alive, now) + SILENCE
                if not here and end > now:
                    say(f'waiting for a sign of life of {_named(other)}, at most {end - now:.0f} s')
            if not here and end > now:
                clock.sleep(min(end - now, BEAT / 4))
                continue
        with contextlib.suppress(swap.Changed):  # somebody was faster: who?
            return Lease(folder, mine, swap.replace(folder / FILE, _text(mine), seen), clock)


def _text(owner):
    return json.dumps(dataclasses.asdict(owner), indent=1) + '\n'


def _owner(text):
    """The `Owner` in a file; None if it holds none."""
    try:
        owner = Owner(**json.loads(text))
        numbers = {'process': int(owner.process), 'alive': float(owner.alive)}
        return dataclasses.replace(owner, host=str(owner.host), **numbers)
    except (ValueError, TypeError, OverflowError):
        return None


def _named(owner):
    return f'process {owner.process} of {printable(owner.host)}'
