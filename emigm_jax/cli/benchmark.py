"""`emigm benchmark`: speed, FLOPs, memory and compile time of training, sampling and data."""

import json

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'benchmark',
        'Measures a config with random weights and data. FLOPs are counted from shapes (matrix '
        'products,\n2 per multiply-add); "of matmul peak" compares with a large matrix product '
        'timed in the same run.',
        'emigm benchmark train --config configs/imagenet256.py:size=xs --batch-size 8\n'
        '  emigm benchmark data --config configs/imagenet256.py:size=xs --config.data.name=latents '
        '--config.data.path=CACHE',
    )
    parser.add_argument('what', choices=('train', 'sample', 'data'))
    shared.add_config(parser)
    for flag, default, text in (
        ('--batch-size', None, "images per step (8 per device; data: the config's)"),
        ('--repeats', None, 'timed steps, whose median counts (3); data: batches (50)'),
        ('--train-steps', 0, 'data: also time so many real steps, and how long they wait'),
    ):
        parser.add_argument(flag, type=int, default=default, help=text)
    parser.add_argument('--json', metavar='FILE', help='write the figures there, too')
    arguments, config = shared.parse_with_config(parser, argv)
    data = arguments.what == 'data'
    if arguments.train_steps and not data:
        parser.error('--train-steps goes with data')
    if arguments.batch_size is None:
        import jax

        arguments.batch_size = config.training.batch_size if data else 8 * jax.device_count()
    if arguments.repeats is None:
        arguments.repeats = 50 if data else 3
    for name, low in (('batch_size', 1), ('repeats', 1), ('train_steps', 0)):
        if getattr(arguments, name) < low:
            parser.error(f'--{name.replace("_", "-")} must be at least {low}')

    if data:
        from emigm_jax.benchmark.data import measure

        result = measure(config, arguments.batch_size, arguments.repeats, arguments.train_steps)
    else:
        from emigm_jax.benchmark.steps import measure

        result = {
            'what': f'{arguments.what} {arguments.config}',
            **measure(arguments.what, config, arguments.batch_size, arguments.repeats),
        }
    for key, value in result.items():
        print(f'{key:28} {value:.4g}' if isinstance(value, float) else f'{key:28} {value}')
    if arguments.json:
        from emigm_jax.io import files

        files.write_text(arguments.json, json.dumps(result, indent=2) + '\n')
    return 0
