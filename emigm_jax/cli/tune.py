"""`emigm tune`: the best sampling settings of a checkpoint within a time per image."""

import re

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser
from emigm_jax.errors import UserError

_UNITS = {'': 1.0, 's': 1.0, 'second': 1.0, 'seconds': 1.0, 'ms': 1e-3}


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'tune',
        'Searches the sampling settings of the least FID (in pixels: Frechet distance) within a '
        'time per\nimage: steps, schedule, order, guidance, solver and what else suits the model. '
        'Writes the Pareto\nfront as a table and a picture, and a copy of the checkpoint with the '
        'best settings as a preset.\nThe same command goes on after an interruption.',
        'emigm tune runs/digits --budget 0.005 --out runs/tuning\n  '
        "emigm tune emigm-l-256 --tokenizer kl16 --inception fid-inception --budget '50 ms per "
        "image' \\\n      --reference VIRTUAL_imagenet256_labeled.npz --out tuning",
    )
    parser.add_argument(
        'what', nargs='?', metavar='CHECKPOINT', help='workdir, step folder, or converted model'
    )
    parser.add_argument('--checkpoint', help='the same')
    parser.add_argument(
        '--budget',
        required=True,
        type=_seconds,
        help="seconds per image on this machine ('0.05', '50 ms per image')",
    )
    parser.add_argument(
        '--out', default='tuning', help='folder of measurements, and of NAME/ (tuning)'
    )
    parser.add_argument('--name', default='tuned', help='of the preset (tuned)')
    parser.add_argument(
        '--images', type=shared.count, help='of each in the last rung (10000; in pixels: 2000)'
    )
    parser.add_argument(
        '--candidates', type=shared.count, default=32, help='settings that are tried (32)'
    )
    parser.add_argument(
        '--reference', help='statistics of real images, or a folder of them; as `emigm evaluate`'
    )
    parser.add_argument('--inception', help='its checkpoint, from `emigm convert`')
    parser.add_argument('--tokenizer', help='checkpoint of the tokenizer (KL-16, DC-AE, VQGAN)')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), help='of matrix products')
    parser.add_argument('--batch-size', type=shared.count, default=64, help='images at a time (64)')
    parser.add_argument('--dry-run', action='store_true', help='print what is tried and stop')
    arguments = parser.parse_args(argv)
    if (arguments.what is None) == (arguments.checkpoint is None):
        parser.error('names one CHECKPOINT')

    from emigm_jax.api.model import load
    from emigm_jax.tuning import tune

    model = load(
        arguments.what or arguments.checkpoint,
        tokenizer=arguments.tokenizer,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
    )
    effort = tune.Effort(arguments.images, arguments.candidates)
    if arguments.dry_run:
        print('\n'.join(tune.described(model, effort)))
        return 0
    tuned = tune.tune(
        model,
        arguments.out,
        arguments.budget,
        name=arguments.name,
        reference=arguments.reference,
        inception=arguments.inception,
        effort=effort,
    )
    print(tuned.table)
    print(
        f'emigm sample --checkpoint {tuned.checkpoint} --preset {arguments.name}: '
        f'{tuned.seconds:.3g} s per image'
    )
    return 0


def _seconds(text):
    match = re.fullmatch(r'\s*([0-9.]+(?:e-?[0-9]+)?)\s*([a-z]*?)\s*(per image)?\s*', text)
    if not match or match[2] not in _UNITS or match[1].count('.') > 1 or match[1] == '.':
        raise UserError(f"--budget must look like '0.05' or '50 ms per image', not {text!r}")
    return float(match[1]) * _UNITS[match[2]]
