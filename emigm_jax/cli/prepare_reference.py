"""`emigm prepare reference`: Inception statistics of real pictures."""

from emigm_jax.errors import UserError

BATCH = 64


def run(parser, arguments):
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

    import tqdm

    from emigm_jax.checkpoints import store
    from emigm_jax.evaluation import inception, measure, references, statistics
    from emigm_jax.io import access, paths

    if paths.absolute(arguments.target).exists():
        raise UserError(store.taken(arguments.target))
    access.probe(paths.absolute(arguments.target).parent)
    extractor = inception.load(arguments.inception)
    images, source = _images(arguments)
    if len(images) < 2:
        raise UserError(f'{source}: a reference needs at least 2 images')
    network = measure.Network(extractor.params)
    names = ('fid', 'sfid', 'kid') if arguments.keep_features else ('fid', 'sfid')
    plan = measure.Plan(names, arguments.batch_size or BATCH)
    shifts = measure.pilot(images, network, plan.batch)
    with tqdm.tqdm(total=len(images), unit=' images', disable=None) as bar:
        found = measure.once(images, network, shifts, plan, bar.update)
    cropped = f', centre crops of {arguments.image_size}' if arguments.image_size else ''
    references.write(
        arguments.target,
        statistics.moments(found.totals, 'pool'),
        source=f'{len(images)} images of {source}{cropped}',
        count=len(images),
        spatial=statistics.moments(found.totals, 'spatial'),
        features=found.features,
    )
    print(
        f'{len(images):,} images -> {arguments.target} '
        f'({references.read(arguments.target).fingerprint})'
    )
    return 0


def _images(arguments):
    """(one of `image_sets`, what it is called)."""
    from emigm_jax.evaluation import image_sets

    if arguments.npz:
        return image_sets.stored(arguments.npz), arguments.npz
    if arguments.folder:
        source, place = image_sets.Below(arguments.folder), arguments.folder
    else:
        from emigm_jax.data.tfds_source import TFDS

        split = arguments.split or 'train'
        source = TFDS(arguments.tfds, split, arguments.data_dir)
        place = f'{arguments.tfds} {split}'
    return image_sets.Pictures(source, place, arguments.image_size), place
