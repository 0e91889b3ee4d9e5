"""`emigm benchmark`: speed, FLOPs, memory and compile time of training, sampling and data."""

import json

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser, dispatch

COMMANDS = {
    'train': (f'{__name__}:train', 'training steps on random data'),
    'sample': (f'{__name__}:sample', 'generation with random weights'),
    'data': (f'{__name__}:data', 'reading the training data, and how long steps wait for it'),
}


def run(argv: list[str]) -> int:
    """Runs the command."""
    return dispatch('emigm benchmark', COMMANDS, argv)


def train(argv: list[str]) -> int:
    """Runs `emigm benchmark train`."""
    return _steps('train', 'training steps on random data', argv)


def sample(argv: list[str]) -> int:
    """Runs `emigm benchmark sample`."""
    return _steps('sample', 'generation with random weights', argv)


def _steps(what, summary, argv):
    parser = Parser(
        f'benchmark {what}',
        f'Measures {summary}. FLOPs are counted from shapes (matrix products,\n2 per '
        'multiply-add); "of matmul peak" compares with a large matrix product timed in the same '
        'run.',
        f'emigm benchmark {what} --config configs/imagenet256.py:size=xs --batch-size 8',
    )
    _add(parser, 'images per step (8 per device)', 'timed steps, whose median counts (3)')
    arguments, config = shared.parse_with_config(parser, argv)

    import jax

    from emigm_jax.benchmark.steps import measure

    batch, repeats = arguments.batch_size or 8 * jax.device_count(), arguments.repeats or 3
    print(f'compiling, then {repeats} timed steps', flush=True)
    figures = measure(what, config, batch, repeats)
    return _show({'what': f'{what} {arguments.config}', **figures}, arguments.json)


def data(argv: list[str]) -> int:
    """Runs `emigm benchmark data`."""
    parser = Parser(
        'benchmark data',
        'Measures how fast the training data of a config are read.',
        'emigm benchmark data --config configs/imagenet256.py:size=xs --config.data.name=latents '
        '--config.data.path=CACHE',
    )
    _add(parser, "images per batch (the config's)", 'batches (50)')
    parser.add_argument(
        '--train-steps',
        type=shared.count,
        default=0,
        help='also time so many real steps, and how long they wait',
    )
    arguments, config = shared.parse_with_config(parser, argv)

    from emigm_jax.benchmark.data import measure

    batch, repeats = (
        arguments.batch_size or config.training.batch_size,
        arguments.repeats or 50,
    )
    return _show(measure(config, batch, repeats, arguments.train_steps), arguments.json)


def _add(parser, batch_size, repeats):
    shared.add_config(parser)
    parser.add_argument('--batch-size', type=shared.count, help=batch_size)
    parser.add_argument('--repeats', type=shared.count, help=repeats)
    parser.add_argument('--json', metavar='FILE', help='write the figures there, too')


def _show(figures, file):
    for key, value in figures.items():
        print(f'{key:28} {value:.4g}' if isinstance(value, float) else f'{key:28} {value}')
    if file:
        from emigm_jax.io import files

        files.write_text(file, json.dumps(figures, indent=2) + '\n')
    return 0
