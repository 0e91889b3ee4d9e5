"""The `emigm` command: finds the subcommand, turns user errors into one line and exit code 2."""

import argparse
import contextlib
import importlib
import io
import logging
import os
import select
import signal
import sys
from collections.abc import Mapping
from typing import NoReturn

import emigm_jax
from emigm_jax.errors import LONGEST, UserError, near, printable

# name: (module, summary). Modules are imported only when their command runs.
COMMANDS = {
    'train': ('emigm_jax.cli.train', 'train a model, or go on training it'),
    'settings': ('emigm_jax.cli.settings', 'list what can be set, and what it means'),
    'sample': ('emigm_jax.cli.sample', 'generate images from a checkpoint'),
    'edit': ('emigm_jax.cli.edit', 'draw a part of a picture anew'),
    'demo': ('emigm_jax.cli.demo', 'a page to play with a checkpoint'),
    'evaluate': ('emigm_jax.cli.evaluate', 'score generated images against real ones'),
    'sweep': ('emigm_jax.cli.sweep', 'train and measure all points of a comparison'),
    'tune': ('emigm_jax.cli.tune', 'find the best sampling settings within a time per image'),
    'report': ('emigm_jax.cli.report', 'show runs and evaluations on one page'),
    'prepare': ('emigm_jax.cli.prepare', 'make latent caches and references, measure scales'),
    'convert': ('emigm_jax.cli.convert', 'convert official weights, or export ours'),
    'checkpoint': ('emigm_jax.cli.checkpoint', 'list, inspect, copy and export checkpoints'),
    'verify': ('emigm_jax.cli.verify', 'compare this machine with recorded numbers'),
    'benchmark': ('emigm_jax.cli.benchmark', 'measure speed and memory'),
    'compile': ('emigm_jax.cli.compile', 'memory and speed on TPUs that are not there'),
}


def main(argv: list[str] | None = None) -> int:
    """Runs `emigm COMMAND ...` and returns the exit code."""
    _listen()
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    try:
        code = _code(sys.argv[1:] if argv is None else argv)
        for stream in streams:
            stream.flush()  # a reader who has gone is met here, not at exit
        return code
    except BrokenPipeError:
        unread = [stream for stream in streams if _unread(stream)]
        if not unread:
            raise
        for stream in unread:  # for the flush at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + signal.SIGPIPE


class _Notes(logging.Handler):
    """Shows what the library notes about this machine, such as which kernels run, once."""

    def emit(self, record):
        from emigm_jax.parallel import processes

        if processes.is_first():
            print(record.getMessage(), file=sys.stderr, flush=True)


def _listen():
    log = logging.getLogger('emigm_jax')
    if not log.handlers:
        log.setLevel(logging.INFO)
        log.addHandler(_Notes())


def _code(argv):
    """The exit code of a command; what a user can mend is said in one line."""
    code = UserError.code
    try:
        if argv == ['--version']:
            print(f'emigm_jax {emigm_jax.__version__}')
            return 0
        return dispatch('emigm', COMMANDS, argv)
    except SystemExit as ended:
        if ended.code:
            raise
        return 0  # argparse has shown --help
    except UserError as error:
        reason, code = str(error), error.code
    except KeyboardInterrupt:
        print('emigm: interrupted', file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        raise
    except OSError as error:  # a disk or a network, wherever it was touched
        from emigm_jax.io import gcs

        if not (error.strerror or gcs.passing(error)):
            raise
        what = error.strerror or gcs.brief(error)
        reason = f'{error.filename}: {what}' if error.filename else what
        code = gcs.line(reason, error).code
    except (RuntimeError, AssertionError) as error:
        if 'jax' not in sys.modules:
            raise
        from emigm_jax.parallel import backend

        if not (reason := backend.explained(error)):
            raise
    print(f'emigm: {printable(reason, LONGEST)}', file=sys.stderr)
    return code


def dispatch(program: str, commands: Mapping[str, tuple[str, str]], argv: list[str]) -> int:
    """Runs the one of the `commands` that `argv` names and returns its exit code.

    Args:
      program: what was typed so far.
      commands: {name: (MODULE, or MODULE:FUNCTION where that is not `run`; summary)}.
      argv: what was typed after it.

    Raises:
      UserError: no such command, or one from it.
    """
    if not argv or argv[0] in ('-h', '--help'):
        width = max(map(len, commands))
        summary = '\n'.join(f'  {name:<{width}}  {text}' for name, (_, text) in commands.items())
        print(f'usage: {program} COMMAND ...\n\ncommands:\n{summary}\n')
        if commands is not COMMANDS:
            print(*(_use(commands[name]) for name in commands), sep='\n')
        print(f'{program} COMMAND --help says more, with an example.')
        return 0 if argv else 2
    name, *rest = argv
    if name not in commands:
        raise UserError(
            f'no command {f"{program} {name}".removeprefix("emigm ")!r}{near(name, commands)}; '
            f'there are {", ".join(commands)}'
        )
    return _function(commands[name])(rest) or 0


def _function(command):
    module, _, function = command[0].partition(':')
    return getattr(importlib.import_module(module), function or 'run')


def _use(command):
    """The first and the last part of a command's --help: its usage, and an example."""
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        _function(command)(['--help'])
    usage, *_, example = shown.getvalue().split('\n\n')
    return f'{usage}\n{example}'


def _unread(stream):
    """Whether nobody reads a stream any more, as after `| head`."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors and whose help ends in an example."""

    def __init__(self, name: str, summary: str, example: str):
        super().__init__(
            prog=f'emigm {name}',
            description=summary,
            epilog=f'example:\n  {example}',
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Called by argparse on bad arguments."""
        raise UserError(f'{self.prog.removeprefix("emigm ")}: {message} (see {self.prog} --help)')


if __name__ == '__main__':
    sys.exit(main())
