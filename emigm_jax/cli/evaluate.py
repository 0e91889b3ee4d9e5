"""`emigm evaluate`: scores of generated images beside those of real against real."""

import json
import pathlib
import time

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser
from emigm_jax.errors import UserError


def run(argv):
    """Runs the command."""
    parser = Parser(
        'evaluate',
        'Scores a checkpoint against its real data in pixel space, for pixel-token data.',
        'emigm evaluate --checkpoint runs/digits --num-images 1000 --json scores.json',
    )
    parser.add_argument('--checkpoint', required=True, help='workdir or step folder')
    parser.add_argument(
        '--num-images', type=int, default=1000, help='images, class by class (1000)'
    )
    parser.add_argument('--json', metavar='FILE', help='write the scores there, too')
    shared.add_sampling(parser)
    arguments = parser.parse_args(argv)

    import numpy as np

    from emigm_jax.data import sources
    from emigm_jax.evaluation import generate, scores
    from emigm_jax.training import checkpoint

    saved = checkpoint.require(arguments.checkpoint)
    config = shared.sampling_config(arguments, saved.config.sampling)
    count, classes = arguments.num_images, saved.config.model.classes
    if count < 4 or count % classes:
        raise UserError(f'--num-images must be a multiple of the {classes} classes, not {count}')
    if arguments.json and not pathlib.Path(arguments.json).absolute().parent.is_dir():
        raise UserError(f'--json {arguments.json}: its folder does not exist')
    if saved.config.data.name != 'digits':
        raise UserError(f'{saved.path}: only models of the digits are evaluated in pixel space')
    make = generate.from_checkpoint(saved, config, arguments.weights, arguments.batch_size)
    source = sources.digits()

    labels = np.arange(count) * classes // count  # sorted by class, image i from seed i
    start = time.perf_counter()
    pictures = make.images(labels, np.arange(count))
    seconds = (time.perf_counter() - start) / count
    flat = lambda images: images.reshape(len(images), -1) / 255.0
    real = flat(source.images)
    result = {
        **scores.compare(real, source.labels, flat(pictures), labels),
        'real_halves': scores.halves(real, source.labels),
        'images': count,
        'step': saved.step,
        'weights': make.weights,
        'nfe': make.nfe,
        'seconds_per_image': seconds,
    }
    _print(result)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=2) + '\n')
    return 0


_ROWS = (
    ('accuracy', 'class accuracy (1-NN)'),
    ('frechet_distance', 'Frechet distance (pixels)'),
    ('precision', 'precision (k=3)'),
    ('recall', 'recall (k=3)'),
)


def _print(result):
    print(f'{"":26} {"generated":>10} {"real halves":>12}')
    for key, title in _ROWS:
        print(f'{title:26} {result[key]:10.3f} {result["real_halves"][key]:12.3f}')
    print(
        f'{result["images"]} images of step {result["step"]}, weights {result["weights"]}, '
        f'NFE {result["nfe"]}, {result["seconds_per_image"]:.4f} s per image with compilation'
    )
