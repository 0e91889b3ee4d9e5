"""Several parts of a sweep at a time, each in a process of its own on its share of the cores.

Operations of small networks gain little from a second core, so two runs that have one each are done
sooner than one after the other on both.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from emigm_jax.errors import UserError
from emigm_jax.parallel import processes


def run(commands: Sequence[Sequence[str]], say: Callable[[str], object] = print) -> int:
    """Runs `emigm` commands beside one another; SIGINT and SIGTERM are handed to all of them.

    Args:
      commands: the arguments of each.
      say: gets their lines, each with the number of the command before it.

    Returns:
      0 if all ended well; that of a restart if one wants it; else the first that is not 0.

    Raises:
      UserError: there are more of them than cores.
    """
    count, cores = len(commands), _cores()
    if count > len(cores):
        raise UserError(f'{count} at once: this process may use {len(cores)} cores')
    begun = []
    with _handed_on(begun):
        for i, command in enumerate(commands):
            begun.append(
                subprocess.Popen(
                    [sys.executable, '-m', 'emigm_jax', *command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors='replace',
                    start_new_session=True,  # a terminal interrupts this process alone
                )
            )
            if hasattr(os, 'sched_setaffinity'):  # before it imports what counts cores
                mine = cores[i * len(cores) // count : (i + 1) * len(cores) // count]
                os.sched_setaffinity(begun[-1].pid, mine)
        threads = [
            threading.Thread(target=_told, args=(process, f'[{i}/{count}]', say))
            for i, process in enumerate(begun, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    codes = [code if code >= 0 else 128 - code for code in (process.wait() for process in begun)]
    return processes.RESTART if processes.RESTART in codes else next(filter(None, codes), 0)


def _cores():
    if hasattr(os, 'sched_getaffinity'):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _told(process, title, say):
    with process.stdout:
        for line in process.stdout:
            say(f'{title} {line.rstrip()}')


@contextlib.contextmanager
def _handed_on(begun: list[subprocess.Popen]) -> Iterator[None]:
    """A context in which what asks this process to end asks those it has begun."""

    def hand(number, _):
        for process in begun:
            process.send_signal(number)  # which does nothing if it has ended

    before = {number: signal.signal(number, hand) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except BaseException:
        hand(signal.SIGTERM, None)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
