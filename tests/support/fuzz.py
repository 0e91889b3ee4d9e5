"""Reads changed files of one kind in this process, whose memory and time are bounded.

    python -m support.fuzz KIND FIRST COUNT [SECONDS]

Case i of a kind is a function of i alone: `python -m support.fuzz KIND i 1` does it again. KIND is
`all` for one after the other. It ends with code 1 and the cases that were neither read nor turned
away by one printable line, or took too much time or memory. Kinds that take long have fewer cases,
and after SECONDS none has any more.
"""

import contextlib
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings

import numpy as np

from emigm_jax.data.sources import Unreadable
from emigm_jax.errors import LONGEST, UserError
from support import fuzzed, mutations

MEMORY = 2**29  # bytes that a case may take beyond those of the process
SECONDS = 3.0  # of processors, for one case; of kinds that take long, so many times both
MOST_FAILURES = 10


class TooSlow(BaseException):  # nobody who reads a file may take it for damage
    """A file took longer to read than it may."""


def _too_slow(*_):
    raise TooSlow


def complaint(error):
    """What is wrong with the line by which a file is turned away; '' if nothing is."""
    line = str(error) if isinstance(error, UserError) else error.reason
    if not line.isprintable() or len(line) > LONGEST or not line:
        return f'is no line: {line[:3000]!a}'
    return f'out of memory: {line}' if 'MemoryError' in line or 'into memory' in line else ''


def case(kind, number, sound, place):
    """Reads one changed file; what is wrong with how that ended, or '', and the seconds."""
    rng = np.random.default_rng(number)
    files = sorted(file for file in sound.rglob('*') if file.is_file())
    file = files[number % len(files)]
    content = mutations.mutated(file.read_bytes(), rng, file.name)
    if kind.together:
        shutil.copytree(sound, place)
    else:
        place.mkdir()
    changed = place / file.relative_to(sound)
    changed.write_bytes(content)
    begin = time.perf_counter()
    found = outcome(lambda: kind.read(place if kind.together else changed), SECONDS * kind.slow)
    shutil.rmtree(place, ignore_errors=True)
    return found and f'{file.name}: {found}', time.perf_counter() - begin


def outcome(read, seconds, wanted=None):
    """What is wrong with how reading ends, or ''.

    Args:
      read: reads something.
      seconds: that it may take.
      wanted: in the line by which it is turned away; '': it is read; None: either.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        read()
        return f'is read, and not turned away with {wanted!r}' if wanted else ''
    except (UserError, Unreadable) as error:
        other = wanted is not None and (not wanted or wanted not in str(error))
        return complaint(error) or f'another line: {error}' * other
    except (Exception, TooSlow):
        return traceback.format_exc(limit=-6)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def run(name, first, count, seconds):
    """The number of cases that failed."""
    kind, failed, slowest, done = fuzzed.KINDS[name], 0, 0.0, 0
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        sound = pathlib.Path(folder) / 'sound'
        sound.mkdir()
        kind.make(sound)
        # What is imported and compiled once counts for no case.
        for file in [sound] if kind.together else sorted(sound.iterdir()):
            again = pathlib.Path(folder) / 'again'
            shutil.copytree(sound, again)
            kind.read(again if kind.together else again / file.name)
            shutil.rmtree(again)
        for number in range(first, first + max(1, count // kind.slow)):
            if time.monotonic() > end:
                break
            with limited(MEMORY * kind.slow):
                found, took = case(kind, number, sound, pathlib.Path(folder) / 'case')
            slowest, done, failed = max(slowest, took), done + 1, failed + bool(found)
            if found:
                print(f'== {name} {number}: {found}', flush=True)
            if failed == MOST_FAILURES:
                break
    print(f'{name}: {done} cases, {failed} failed, the slowest took {slowest:.2f} s')
    return failed


@contextlib.contextmanager
def limited(more):
    """Around what may take so many bytes more than this process has."""
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def set_up():
    """Warnings fail, but for those of the standard library's readers; time can run out."""
    warnings.simplefilter('error')
    warnings.simplefilter('ignore', DeprecationWarning)
    signal.signal(signal.SIGPROF, _too_slow)


if __name__ == '__main__':
    set_up()
    fuzzed.narrow_references()
    names = [sys.argv[1]] if sys.argv[1] != 'all' else list(fuzzed.KINDS)
    first, count, *rest = map(int, sys.argv[2:])
    failures = [run(name, first, count, *(rest or [10**9])) for name in names]
    sys.exit(bool(sum(failures)))
