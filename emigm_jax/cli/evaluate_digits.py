"""Scores of models of the digits in pixel space, beside those of real digits against real ones."""

import time

from emigm_jax.cli import arguments as shared
from emigm_jax.errors import UserError


def run(arguments):
    """Runs `emigm evaluate --checkpoint` without a reference."""
    import tqdm

    from emigm_jax.checkpoints import runs
    from emigm_jax.data import sources
    from emigm_jax.evaluation import image_sets, measure, scores
    from emigm_jax.io import files
    from emigm_jax.parallel import agreement
    from emigm_jax.sampling import generator

    saved = runs.require(arguments.checkpoint)
    if saved.config.data.name != 'digits':
        raise UserError(
            f'{saved.path}: needs --reference and --inception (only models of the '
            'digits are scored in pixel space)'
        )
    config = shared.sampling_config(arguments, saved)
    count = 1000 if arguments.num_images is None else arguments.num_images
    classes = saved.config.model.classes
    if count < 4 or count % classes:
        raise UserError(f'--num-images must be a multiple of the {classes} classes, not {count}')
    make = generator.from_checkpoint(saved, config, arguments.weights, arguments.batch_size)
    source = sources.digits()

    images = image_sets.Generated(make, count, classes)
    start, off = time.perf_counter(), None if agreement.first() else True
    with tqdm.tqdm(total=count, unit=' images', disable=off) as bar:
        pictures = measure.pictures(images, arguments.batch_size, bar.update)
    seconds = (time.perf_counter() - start) / count
    first = agreement.first()
    agreement.leave()
    if not first:
        return 0
    flat = lambda images: images.reshape(len(images), -1) / 255.0
    real = flat(source.images)
    result = {
        **scores.compare(real, source.labels, flat(pictures[..., :1]), images.labels),
        'real_halves': scores.halves(real, source.labels),
        'images': count,
        'step': saved.step,
        'weights': make.weights,
        'nfe': make.nfe,
        'seconds_per_image': seconds,
    }
    _print(result)
    if arguments.json:
        files.write_json(arguments.json, result)
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
