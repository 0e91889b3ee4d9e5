"""`emigm prepare reference`: Inception statistics of real pictures."""

from emigm_jax.errors import UserError

BATCH = 64


def run(parser, arguments):
    """Runs the command."""
    if bool(arguments.folder) == bool(arguments.npz):
        parser.error('reference needs one of --folder and --npz')
    if not arguments.inception:
        parser.error('reference needs --inception')
    if not arguments.target.endswith('.npz'):
        parser.error(f'{arguments.target}: a reference ends in .npz')
    if arguments.npz and arguments.image_size:
        parser.error('--image-size goes with --folder')

    import tempfile

    import tqdm

    from emigm_jax import storage
    from emigm_jax.evaluation import (
        image_sets,
        inception,
        measure,
        references,
        statistics,
    )

    if storage.absolute(arguments.target).exists():
        raise UserError(storage.taken(arguments.target))
    storage.probe(storage.absolute(arguments.target).parent)
    extractor = inception.load(arguments.inception)
    if arguments.folder:
        images = image_sets.Folder(arguments.folder, arguments.image_size)
    else:
        images = image_sets.Npz(arguments.npz)
    if len(images) < 2:
        raise UserError(f'{arguments.folder or arguments.npz}: a reference needs at least 2 images')
    network = measure.Network(extractor.params)
    names = ('fid', 'sfid', 'kid') if arguments.keep_features else ('fid', 'sfid')
    plan = measure.Plan(names, arguments.batch_size or BATCH)
    shifts = measure.pilot(images, network, plan.batch)
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm.tqdm(total=len(images), unit=' images', disable=None) as bar,
    ):
        totals, features = measure.totals(images, folder, {}, network, shifts, plan, bar.update)
    source = arguments.folder or arguments.npz
    cropped = f', centre crops of {arguments.image_size}' if arguments.image_size else ''
    references.write(
        arguments.target,
        statistics.moments(totals, 'pool'),
        source=f'{len(images)} images of {source}{cropped}',
        count=len(images),
        spatial=statistics.moments(totals, 'spatial'),
        features=features,
    )
    print(f'{len(images):,} images -> {arguments.target} '
          f'({references.read(arguments.target).fingerprint})')  # fmt: skip
    return 0
