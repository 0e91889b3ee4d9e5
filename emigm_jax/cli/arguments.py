"""Arguments shared by several commands: config files, lists of numbers, sampling settings."""

import dataclasses
import json

from emigm_jax.cli.main import Parser
from emigm_jax.config.options import OPTIONS, changed
from emigm_jax.errors import UserError


def add_config(parser: Parser):
    """--config FILE.py[:VARIANT], and --config.NAME=VALUE for single settings."""
    parser.add_argument(
        '--config',
        required=True,
        metavar='FILE.py[:VARIANT]',
        help='settings; single ones can be changed with --config.NAME=VALUE',
    )


def parse_with_config(parser, argv):
    """Parses `argv` and its --config flags: (arguments, resolved `Config`)."""
    arguments, rest = parser.parse_known_args(argv)
    for flag in rest:
        if not flag.startswith('--config.'):
            parser.error(f'unknown argument {flag!r}')
    from emigm_jax.config.load import load_config

    return arguments, load_config(arguments.config, rest)


def print_config(config):
    """Prints the resolved settings as JSON."""
    print(json.dumps(dataclasses.asdict(config), indent=2))


def add_processes(parser):
    """Flags by which several processes find one another."""
    group = parser.add_argument_group(
        'several processes', 'TPU pods, GKE, Slurm and MPI need none of these'
    )
    group.add_argument('--coordinator', metavar='HOST:PORT', help='of process 0')
    group.add_argument('--num-processes', type=int, help='how many there are')
    group.add_argument('--process-id', type=int, help='which this one is, from 0')
    group.add_argument(
        '--join-timeout', type=int, default=300, metavar='SECONDS', help='wait for all (300)'
    )


def join(arguments):
    """Joins the processes that `add_processes` names; returns a context for the work to do."""
    from emigm_jax.parallel import processes

    processes.start(
        arguments.coordinator, arguments.num_processes, arguments.process_id, arguments.join_timeout
    )
    return processes.together()


def numbers(name, text):
    """'3', '1,5,9', '0-15' or a mix of them -> list of ints, in the order given."""
    found = []
    for part in text.split(','):
        low, dash, high = part.strip().partition('-')
        if not low.isdigit() or (dash and not high.isdigit()):
            raise UserError(f"--{name} must look like '3', '1,5' or '0-15', not {text!r}")
        if dash and int(high) < int(low):
            raise UserError(f'--{name}: the range {part} is reversed')
        if int(high or low) >= 2**32:  # what a key can be folded with
            raise UserError(f'--{name}: numbers end at {2**32 - 1}, {part} does not')
        found += range(int(low), int(high) + 1) if dash else [int(low)]
    return found


def add_sampling(parser):
    """Flags that change the checkpoint's sampling settings."""
    group = parser.add_argument_group('sampling (default: as the checkpoint says)')
    for name, option in OPTIONS.items():
        pair = dict(type=_pair, metavar='FROM,TO') if name == 'interval' else dict(type=option.kind)
        group.add_argument(f'--{name.replace("_", "-")}', help=option.meaning, **pair)
    group.add_argument(
        '--weights',
        default='',
        metavar='DECAY',
        help='an EMA decay, or params (default: first EMA)',
    )
    group.add_argument('--batch-size', type=int, default=64, help='images at a time (64)')


def _pair(text):
    try:
        low, high = map(float, text.split(','))
    except ValueError:
        raise UserError(f"--interval must look like '0.1,0.3', not {text!r}") from None
    return low, high


def sampling_config(arguments, saved):
    """The `SamplingConfig` of a checkpoint (`runs.Saved`) with the given flags put in."""
    if arguments.batch_size < 1:
        raise UserError(f'--batch-size must be at least 1, not {arguments.batch_size}')
    given = {name: getattr(arguments, name) for name in OPTIONS}
    preset = getattr(arguments, 'preset', None)
    return changed(saved.sampling(preset), {k: v for k, v in given.items() if v is not None})
