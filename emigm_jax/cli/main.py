"""The `emigm` command: finds the subcommand, turns user errors into one line and exit code 2."""

import argparse
import importlib
import os
import select
import signal
import sys
from collections.abc import Mapping
from typing import NoReturn

import emigm_jax
from emigm_jax.errors import UserError, near

# name: (module, summary). Modules are imported only when their command runs.
COMMANDS = {
    'train': ('emigm_jax.cli.train', 'train a model, or go on training it'),
    'settings': ('emigm_jax.cli.settings', 'list what can be set, and what it means'),
    'sample': ('emigm_jax.cli.sample', 'generate images from a checkpoint'),
    'evaluate': ('emigm_jax.cli.evaluate', 'score generated images against real ones'),
    'report': ('emigm_jax.cli.report', 'show runs and evaluations on one page'),
    'prepare': ('emigm_jax.cli.prepare', 'make latent caches and references, measure scales'),
    'convert': ('emigm_jax.cli.convert', 'convert official weights, or export ours'),
    'checkpoint': ('emigm_jax.cli.checkpoint', 'list, inspect, copy and export checkpoints'),
    'benchmark': ('emigm_jax.cli.benchmark', 'measure speed and memory'),
    'compile': ('emigm_jax.cli.compile', 'memory and speed on TPUs that are not there'),
}


def main(argv: list[str] | None = None) -> int:
    """Runs `emigm COMMAND ...` and returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv == ['--version']:
            print(f'emigm_jax {emigm_jax.__version__}')
            return 0
        code = dispatch('emigm', COMMANDS, argv)
        sys.stdout.flush()  # a reader who has gone is met here, not at exit
        return code
    except UserError as error:
        print(f'emigm: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('emigm: interrupted', file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        if not _unread():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 128 + signal.SIGPIPE


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
        print(
            f'usage: {program} COMMAND ...\n\ncommands:\n{summary}\n\n'
            f'{program} COMMAND --help says more, with an example.'
        )
        return 0 if argv else 2
    name, *rest = argv
    if name not in commands:
        raise UserError(
            f'no command {f"{program} {name}".removeprefix("emigm ")!r}{near(name, commands)}; '
            f'there are {", ".join(commands)}'
        )
    module, _, function = commands[name][0].partition(':')
    return getattr(importlib.import_module(module), function or 'run')(rest) or 0


def _unread():
    """Whether nobody reads standard output any more, as after `| head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


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
