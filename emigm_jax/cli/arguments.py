"""Arguments shared by several commands: config files, lists of numbers, sampling settings."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, cast

from emigm_jax.cli.main import Parser
from emigm_jax.config import ranges
from emigm_jax.config.options import OPTIONS, SamplingOptions, changed
from emigm_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from emigm_jax.api.model import Model
    from emigm_jax.checkpoints.runs import Saved
    from emigm_jax.config.settings import Config, SamplingConfig


GROUPS = ('data', 'model', 'loss', 'optimizer', 'training', 'sampling', 'evaluation', 'mesh')


def add_config(parser: Parser, required: bool = True, several: bool = False) -> None:
    """--config CONFIG[:VARIANT], repeated if `several`, and --config.NAME=VALUE for one setting."""
    from emigm_jax.config import shipped

    group = parser.add_argument_group(
        'settings',
        f'--config.NAME=VALUE changes a single one, of the groups {", ".join(GROUPS[:4])},\n'
        f'{", ".join(GROUPS[4:])}. `emigm settings` lists them all, and\n'
        '`emigm settings model.` those of a group.',
    )
    group.add_argument(
        '--config',
        required=required,
        action='append' if several else 'store',
        metavar='CONFIG[:VARIANT]',
        help=f'{", ".join(shipped.names())}, or a file of your own' + '; may be repeated' * several,
    )


def parse_with_config(parser: Parser, argv: list[str]) -> tuple[argparse.Namespace, Config]:
    """Parses `argv` and its --config flags: (arguments, resolved settings)."""
    arguments, rest = parse(parser, argv)
    return arguments, _loaded(arguments.config, rest)


def parse_with_any_config(
    parser: Parser, argv: list[str]
) -> tuple[argparse.Namespace, Config | None]:
    """As `parse_with_config`, of a command that needs none."""
    arguments, rest = parse(parser, argv)
    if arguments.config is not None:
        return arguments, _loaded(arguments.config, rest)
    if rest:
        parser.error(f'{rest[0]} goes with --config')
    return arguments, None


def parse(parser, argv):
    # argparse takes a flag with a space in it, as --config.training.total='3 steps', for a word.
    overrides = [flag for flag in argv if flag.startswith('--config.')]
    arguments, rest = parser.parse_known_args([flag for flag in argv if flag not in overrides])
    if rest:
        parser.error(f'unknown argument {rest[0]!r}')
    return arguments, overrides


def _loaded(name, overrides):
    from emigm_jax.config.load import load_config

    return load_config(name, overrides)


def print_config(config: Config | SamplingConfig) -> None:
    """Prints the resolved settings as JSON."""
    print(json.dumps(dataclasses.asdict(config), indent=2))


def count(text: str) -> int:
    """The type of flags that take a number of things, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError('must be at least 1')
    return value


def counts(text: str) -> list[int]:
    """The type of flags that take a list of such numbers, as 1,4,8."""
    return [count(each) for each in text.split(',')]


def add_pictures(parser: Parser, third: str, metavar: str, meaning: str) -> None:
    """Flags that name pictures: a folder, a TFDS data set, or what the flag `third` says."""
    group = parser.add_argument_group('pictures')
    one = group.add_mutually_exclusive_group(required=True)
    one.add_argument('--folder', help='folder of class folders of pictures')
    one.add_argument('--tfds', metavar='NAME', help='TFDS data set in array_record form')
    one.add_argument(third, metavar=metavar, help=meaning)
    group.add_argument('--split', help='of the TFDS data set (train)')
    group.add_argument('--data-dir', help='where TFDS data sets lie')


def check_pictures(parser: Parser, arguments: argparse.Namespace) -> None:
    """Refuses what goes with --tfds alone."""
    for name in ('split', 'data_dir'):
        if getattr(arguments, name) is not None and not arguments.tfds:
            parser.error(f'--{name.replace("_", "-")} goes with --tfds')


def print_passed_over(passed_over: Mapping[str, int]) -> None:
    """Says which files beside pictures are left out, if there are any."""
    from emigm_jax.data import listing

    if passed_over:
        print(f'left out, as no pictures: {listing.described(passed_over)}', flush=True)


def add_processes(parser: Parser) -> None:
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


def join(arguments: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Joins the processes that `add_processes` names; returns a context for the work to do."""
    from emigm_jax.parallel import processes

    processes.start(
        arguments.coordinator, arguments.num_processes, arguments.process_id, arguments.join_timeout
    )
    return processes.together()


def code_of_training(work: Callable[[], object]) -> int:
    """The exit code of work that trains: 1 if it diverged, that of a restart if asked to end."""
    from emigm_jax.parallel import processes
    from emigm_jax.training import loop

    try:
        work()
    except (loop.NonFinite, loop.Preempted) as error:
        print(f'emigm: {error}', file=sys.stderr)
        return 1 if isinstance(error, loop.NonFinite) else processes.RESTART
    return 0


def numbers(name: str, text: str) -> list[int]:
    """Of '3', '1,5,9', '0-15' or a mix of them, in the order given."""
    return ranges.numbers(f'--{name}', text)


def classes(text: str, model: Model) -> list[int | str | None] | str | None:
    """Classes of a flag as `Model.sample` takes them; warns where numbers are names, too."""
    from emigm_jax.data import class_names

    if text in ('', 'all'):
        return text or None
    saved = model.saved.class_names
    found = class_names.chosen(text, (*saved, *model.class_names), model.classes)
    warning = class_names.in_another_order(saved)
    if warning and any(isinstance(each, int) for each in found):
        print(f'warning: {warning}', file=sys.stderr)
    return found


def add_model(parser: Parser) -> None:
    """Flags that name a model and how it draws."""
    parser.add_argument(
        '--checkpoint', required=True, help='workdir, step folder, or converted model'
    )
    parser.add_argument('--tokenizer', help='checkpoint of the tokenizer (KL-16, DC-AE, VQGAN)')
    parser.add_argument('--preset', help='published settings, fast or best, or of `emigm tune`')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), help='of matrix products')


def add_drawing(parser: Parser, out: str) -> None:
    """Flags of commands that draw images: of which model, and where to."""
    add_model(parser)
    parser.add_argument('--seeds', default='0-7', help="image numbers, '0-15' (default 0-7)")
    parser.add_argument('--out', default=out, help=f'folder to write to, local or gs:// ({out})')
    parser.add_argument(
        '--overwrite', action='store_true', help='clear pictures of other settings in OUT first'
    )
    add_sampling(parser)
    parser.add_argument('--dry-run', action='store_true', help='print the settings and stop')


def model(arguments: argparse.Namespace, saved: Saved) -> Model:
    """The model that the flags of `add_drawing` name, ready to draw."""
    from emigm_jax.api.model import opened
    from emigm_jax.tokenizers import codec

    decoder = codec.load(arguments.tokenizer, arguments.dtype) if arguments.tokenizer else None
    return opened(
        saved,
        tokenizer=decoder,
        weights=arguments.weights,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        guide=guide(arguments),
    )


def once(labels: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each image once, in the order given: the second file of a name would replace the first."""
    import numpy as np

    pairs = list(dict.fromkeys(zip(labels.tolist(), seeds.tolist(), strict=True)))
    return tuple(np.array(pairs).T)


def add_sampling(parser: Parser, batch_size: int = 64) -> None:
    """Flags that change the checkpoint's sampling settings."""
    group = parser.add_argument_group('sampling (default: as the checkpoint says)')
    for name, option in OPTIONS.items():
        kind, metavar = _LISTS.get(name, (option.kind, None))
        if option.choices:
            metavar = f'{{{",".join(option.choices)}}}'
        flag = f'--{name.replace("_", "-")}'
        group.add_argument(flag, help=option.meaning, type=kind, metavar=metavar)
    group.add_argument(
        '--weights',
        default='',
        metavar='DECAY',
        help='an EMA decay, or params (default: first EMA)',
    )
    group.add_argument(
        '--guide',
        metavar='CHECKPOINT',
        help='a weaker model of the same tokens, as runs/digits/checkpoints/200, that guides in '
        'place of the null class',
    )
    group.add_argument(
        '--batch-size', type=count, default=batch_size, help=f'images at a time ({batch_size})'
    )


def _pair(text):
    try:
        low, high = map(float, text.split(','))
    except ValueError:
        raise UserError(f"--interval must look like '0.1,0.3', not {text!r}") from None
    return low, high


def _positions(text):
    try:
        return tuple(map(int, text.split(',')))
    except ValueError:
        raise UserError(f"--positions must look like '2,0,3,1', not {text!r}") from None


_LISTS = {'interval': (_pair, 'FROM,TO'), 'positions': (_positions, 'P,P,...')}


def sampling_options(arguments: argparse.Namespace) -> SamplingOptions:
    """The flags of `add_sampling` that are given."""
    flags = {name: getattr(arguments, name) for name in OPTIONS}
    given = {name: value for name, value in flags.items() if value is not None}
    return cast(SamplingOptions, given)


def sampling_config(arguments: argparse.Namespace, saved: Saved) -> SamplingConfig:
    """The settings of a checkpoint with the given flags put in."""
    from emigm_jax.core import reveal

    preset = getattr(arguments, 'preset', None)
    guided = arguments.guide is not None
    config = changed(saved.sampling(preset), sampling_options(arguments), saved.config, guided)
    if guided and not reveal.guided_steps(config.reveal).any():
        raise UserError(
            f'--guide guides nothing: guidance is {config.reveal.guidance:g}, and '
            f'{config.reveal.guidance_from:g} < s <= {config.reveal.guidance_to:g} while it acts; '
            'say --guidance 1.5 or another --interval'
        )
    return config


def guide(arguments: argparse.Namespace) -> Saved | None:
    """The checkpoint that --guide names."""
    from emigm_jax.checkpoints import runs

    return None if arguments.guide is None else runs.require(arguments.guide)
