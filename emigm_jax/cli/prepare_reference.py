"""`emigm prepare reference`: Inception statistics of real pictures."""

import argparse

from emigm_jax.cli.main import Parser


def run(parser: Parser, arguments: argparse.Namespace) -> int:
    """Runs the command."""
    chosen = [name for name in ('folder', 'tfds', 'npz') if getattr(arguments, name)]
    if len(chosen) != 1:
        parser.error('reference needs one of --folder, --tfds and --npz')
    for name, with_ in (('split', 'tfds'), ('data_dir', 'tfds')):
        if getattr(arguments, name) is not None and chosen != [with_]:
            parser.error(f'--{name.replace("_", "-")} goes with --{with_}')
    if not arguments.inception:
        parser.error('reference needs --inception')
    if not arguments.target.endswith('.npz'):
        parser.error(f'{arguments.target}: a reference ends in .npz')
    for name in ('image_size', 'batch_size'):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1')
    if arguments.npz and arguments.image_size:
        parser.error('--image-size goes with --folder and --tfds')

    import functools

    import tqdm

    from emigm_jax.evaluation.evaluator import Work
    from emigm_jax.evaluation.make_reference import check_new, make_reference

    check_new(arguments.target)  # before what may take long
    images, source = _images(arguments)
    size, batch = arguments.image_size, arguments.batch_size or Work.batch_size
    reference = make_reference(
        arguments.target,
        images,
        inception=arguments.inception,
        source=f'{source}, centre crops of {size}' if size else source,
        keep_features=arguments.keep_features,
        work=Work(batch, bar=functools.partial(tqdm.tqdm, unit=' images', disable=None)),
    )
    print(f'{len(images):,} images -> {arguments.target} ({reference.fingerprint})')
    return 0


def _images(arguments):
    """(`image_sets.ImageSet`, what it is called)."""
    from emigm_jax.evaluation import image_sets

    if arguments.npz:
        return image_sets.stored(arguments.npz), arguments.npz
    if arguments.folder:
        return image_sets.folder(arguments.folder, arguments.image_size), arguments.folder
    from emigm_jax.data.tfds_source import TFDS

    split = arguments.split or 'train'
    source, place = TFDS(arguments.tfds, split, arguments.data_dir), f'{arguments.tfds} {split}'
    return image_sets.Pictures(source, place, arguments.image_size), place
