"""`emigm sweep`: trains and measures all points of a comparison, and tables them."""

import contextlib
import dataclasses
import functools
import re
import shlex

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser
from emigm_jax.errors import UserError


def run(argv: list[str]) -> int:
    """Runs the command."""
    from emigm_jax.config import shipped

    parser = Parser(
        'sweep',
        'Trains runs that differ in a few settings, with several seeds each, draws from them in '
        'several\nways, and writes tables and pictures of their scores. What is there is not made '
        'again, so the\nsame command goes on after an interruption.',
        'emigm sweep configs/sweeps/comparison.py --out runs/comparison\n  '
        'emigm sweep configs/ablations.py:figure=2a --out runs/ablations\n  '
        'emigm sweep --config digits --vary loss.masking.schedule=exp,cosine --draw steps=4,8 \\\n'
        '      --out runs/schedules',
    )
    parser.add_argument(
        'sweep',
        nargs='?',
        metavar='SWEEP[:VARIANT]',
        help=f'{", ".join(shipped.names("sweeps"))}, or a file of your own with a get_sweep',
    )
    parser.add_argument('--out', required=True, help='folder of runs, scores, tables and pictures')
    parser.add_argument(
        '--share',
        default='1/1',
        metavar='I/N',
        help='only every N-th run from the I-th on, without tables: N commands at once, on one '
        'machine or several, do all',
    )
    parser.add_argument('--seeds', help="of training (the file's; without one 0-2)")
    parser.add_argument(
        '--num-images', type=shared.count, help="of each model (the file's; without one 1000)"
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument('--table', action='store_true', help='only table what is there')
    only.add_argument(
        '--commands',
        action='store_true',
        help='only print a command for each run that lacks something, to be jobs of their own, and '
        'the one that tables them',
    )
    only.add_argument(
        '--at-once',
        type=shared.count,
        default=1,
        metavar='N',
        help='as N processes, which share the cores of this machine: small networks on CPUs are '
        'done sooner so (1)',
    )
    group = parser.add_argument_group('without a file')
    group.add_argument(
        '--vary',
        action='append',
        default=[],
        metavar='NAME=A,B',
        help='a setting and its values; several make all combinations',
    )
    group.add_argument(
        '--draw',
        action='append',
        default=[],
        metavar='NAME=A,B',
        help='a sampling option (of emigm sample) and its values; the last one goes across',
    )
    shared.add_config(parser, required=False)
    arguments, overrides = shared.parse(parser, argv)
    share = _share(arguments.share)
    sweep = _sweep(parser, arguments, overrides)

    from emigm_jax.sweep import at_once, write
    from emigm_jax.sweep import run as runner

    if arguments.commands:
        if arguments.share != '1/1':
            parser.error('--share is what --commands divides the work by')
        print('\n'.join(_commands(argv, sweep, arguments.out)))
        return 0
    code, say = 0, functools.partial(print, flush=True)
    if arguments.at_once > 1:
        code = at_once.run(_shares(argv, share, arguments.at_once), say)
    elif not arguments.table:
        code = shared.code_of_training(lambda: runner.run(sweep, arguments.out, share, say))
    # A run that diverged leaves the others; asked to end, all is left.
    if code <= 1 and share == (1, 1):
        print(write.write(sweep, arguments.out))
    return code


def _sweep(parser, arguments, overrides):
    """What the flags ask for."""
    from emigm_jax.config import load

    vary, draw = dict(map(_values, arguments.vary)), dict(map(_values, arguments.draw))
    if 'seed' in vary or any(flag.startswith('--config.seed=') for flag in overrides):
        parser.error('which seeds are trained, --seeds says')
    if arguments.sweep is not None:
        for name in ('config', 'vary', 'draw'):
            if getattr(arguments, name):
                parser.error(f'--{name} goes without a file of a sweep')
        sweep = load.load_sweep(arguments.sweep, overrides)
    elif arguments.config:
        points = load.varied(arguments.config, overrides, vary)
        draws = {name: [_literal(value) for value in values] for name, values in draw.items()}
        sweep = load.Sweep(points, draws)
    else:
        parser.error('names neither a sweep nor a --config')
    changes = {}
    if arguments.seeds is not None:
        changes['seeds'] = tuple(shared.numbers('seeds', arguments.seeds))
    if arguments.num_images is not None:
        changes['num_images'] = arguments.num_images
    return dataclasses.replace(sweep, **changes)


def _commands(argv, sweep, folder):
    """What to launch: a line for each run that lacks something, and the one that tables them."""
    from emigm_jax.sweep import run as runner

    same = ['emigm', 'sweep', *(word for word in argv if word != '--commands')]
    names, lacking = runner.names(sweep), runner.lacking(sweep, folder)
    shares = [f'{i}/{len(names)}' for i, name in enumerate(names, 1) if name in lacking]
    return [
        *(shlex.join([*same, '--share', share]) for share in shares),
        shlex.join([*same, '--table']),
    ]


def _shares(argv, share, count):
    """The arguments of commands that divide a share: of a flag given twice the last one counts."""
    first, step = share
    return [
        ['sweep', *argv, '--at-once', '1', '--share', f'{first + step * i}/{step * count}']
        for i in range(count)
    ]


def _share(text):
    match = re.fullmatch(r'([0-9]{1,6})/([0-9]{1,6})', text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--share must look like '1/2' or '2/2', not {text!r}")
    return int(match[1]), int(match[2])


def _values(text):
    """(NAME, values) of NAME=A,B."""
    name, equals, values = text.partition('=')
    if not name or not equals or not all(values.split(',')):
        raise UserError(f"must look like 'NAME=A,B', not {text!r}")
    return name, values.split(',')


def _literal(text):
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
