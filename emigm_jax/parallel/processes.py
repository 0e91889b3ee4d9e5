"""Several processes as one run: they find one another, and if one dies, all end and say so."""

import contextlib
import ctypes
import glob
import importlib.util
import itertools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax

from emigm_jax.errors import Unavailable, UserError
from emigm_jax.parallel import liveness

RESTART = Unavailable.code  # exit code that asks a launcher to start the same command again
_LONGEST_WAIT = 24 * 3600 * 1000  # milliseconds: no compilation takes a day


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    timeout: int = 300,
) -> None:
    """Joins the processes of a run. Before anything else uses jax; one process alone does nothing.

    Args:
      coordinator: HOST:PORT of process 0; None: a TPU pod, GKE, Slurm or MPI tell it.
      processes, process: how many there are, and which this is; None: as above.
      timeout: seconds to wait for all of them.

    Raises:
      UserError: the three do not belong together.
    """
    flags = (coordinator, processes, process)
    if None in flags and any(value is not None for value in flags):
        raise UserError('--coordinator, --num-processes and --process-id go together')
    if coordinator is not None:
        assert processes is not None and process is not None
        host, colon, port = coordinator.rpartition(':')
        if not (host and colon and port.isdigit()):
            raise UserError(f'--coordinator must look like HOST:PORT, not {coordinator!r}')
        if not 0 <= process < processes:
            raise UserError(
                f'--process-id must be 0 to {processes - 1} (--num-processes - 1), not {process}'
            )
        if processes == 1:
            return
    elif not _in_a_cluster():
        return
    where = coordinator or 'the coordinator (process 0)'
    # jax would abort the process at the end of its own, longer wait.
    waiting = threading.Timer(
        timeout,
        _give_up,
        [
            f'no connection with all processes through {where} within {timeout} s: is each of them '
            'running, and can they reach that address and port?',
            RESTART,  # machines of a pod come up minutes apart
        ],
    )
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=100,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f'{where}: {" ".join(str(error).split())[:200]}') from error
    finally:
        waiting.cancel()
    if jax.process_count() > 1:
        _explain_aborts()
        threading.Thread(target=_watch, daemon=True).start()


def is_first() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0


# Traces that clusters leave in the environment; jax knows how to read each of them.
_TRACES = (
    lambda e: 'JAX_COORDINATOR_ADDRESS' in e,
    lambda e: int(e.get('SLURM_STEP_NUM_TASKS', '1')) > 1,
    lambda e: int(e.get('OMPI_COMM_WORLD_SIZE', '1')) > 1,
    lambda e: ',' in e.get('TPU_WORKER_HOSTNAMES', ''),  # GKE
    lambda e: 'MEGASCALE_COORDINATOR_ADDRESS' in e,  # several TPU slices
)


def _in_a_cluster():
    if any(trace(os.environ) for trace in _TRACES):
        return True
    # A TPU VM: its metadata server knows its pod, of one host or many.
    devices = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
    return bool(devices) and importlib.util.find_spec('libtpu') is not None


def _give_up(message, code=2) -> NoReturn:
    # The other threads of this process may hang in a collective for ever.
    sys.stdout.flush()
    print(f'emigm: {message}', file=sys.stderr, flush=True)
    os._exit(code)


def lost(reason: str) -> NoReturn:
    """Ends this process, because another one of the run has ended."""
    _give_up(
        f'{reason}; this process ends, too (code {RESTART}). The same command, started again '
        'on all of them, goes on from the newest checkpoint',
        RESTART,
    )


def _explain_aborts():
    """jax aborts at once where the coordinator is gone, from a thread of its own, in C++.

    Python's handlers of signals would run too late; this one runs in the thread that aborts.
    """
    global _on_abort  # must outlive this call
    explain = lambda _: lost('jax aborted (above), most likely because process 0 has ended')
    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(explain)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort)


_meetings = itertools.count()


def meet() -> None:
    """Waits until all processes of the run are here, as long as they live; one alone goes on.

    Before the first collective of a program that some compile and others find in a cache: a
    collective itself waits for half a minute only (on CPUs), and `_watch` tells who has ended.
    """
    if jax.process_count() > 1:
        from jax._src import distributed  # its public form is a collective

        client = distributed.global_state.client
        assert client is not None
        client.wait_at_barrier(f'emigm/meeting/{next(_meetings)}', _LONGEST_WAIT)


_leaving = threading.Event()


def leave() -> None:
    """Says that this process ends as it should, so that the others do not miss it."""
    _leaving.set()


def _watch():
    """Gives signs of life until this process leaves; ends it when another one is missed."""
    from jax._src import distributed  # the store of the coordinator has no public name

    client = distributed.global_state.client
    assert client is not None  # it is there once processes are joined
    watch, first = liveness.Watch(client, jax.process_index(), jax.process_count()), is_first()
    while True:
        over = _leaving.wait(liveness.BEAT)
        reason = watch.beat(leaving=over)
        if over:
            return
        if reason:
            time.sleep(liveness.LINGER * first)
            lost(reason)


# What a collective or the coordinator says when another process is not there any more.
_LOSS = (
    'Gloo',
    'NCCL',
    'UNAVAILABLE',
    'DEADLINE_EXCEEDED',
    'CANCELLED',
    'ABORTED',
    'oordination',
    'heartbeat',
)
# Of these, what no bucket says: a collective that fails inside another library's work, such as
# saving, comes wrapped in a line about a place that cannot be written.
_COLLECTIVE = ('Gloo', 'NCCL', 'oordination', 'heartbeat')


def _in_a_collective(error: BaseException) -> bool:
    """Whether what an error was made of is a collective that failed."""
    cause = error.__cause__
    while cause is not None:
        if not isinstance(cause, UserError) and any(sign in str(cause) for sign in _COLLECTIVE):
            return True
        cause = cause.__cause__
    return False


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around the work of a command: of several processes none waits for one that has failed."""
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized() or jax.process_count() == 1:
            raise
        # Leaving in the usual way would wait for the others, which wait in a collective for us.
        text = ' '.join(str(error).split())
        if isinstance(error, UserError) and not _in_a_collective(error):
            _give_up(text, error.code)
        if isinstance(error, KeyboardInterrupt):
            _give_up('interrupted', 130)
        if isinstance(error, Exception) and any(sign in text for sign in _LOSS):
            lost(f'another process of this run has ended ({text[:120]})')
        traceback.print_exc()
        _give_up(f'process {jax.process_index()} failed; the others will end, too', 1)
    leave()
