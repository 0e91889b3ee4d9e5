"""`emigm prepare reference`: Inception statistics of real pictures."""

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'prepare reference',
        'Writes Inception statistics of real pictures, for `emigm evaluate --reference`.',
        'emigm prepare reference real.npz --folder imagenet/val --image-size 256 --inception '
        'fid-inception',
    )
    parser.add_argument('target', help='the reference (.npz), local or gs://')
    shared.add_pictures(parser, '--npz', 'FILE', 'pictures in arr_0')
    parser.add_argument('--inception', required=True, help='its checkpoint, from `emigm convert`')
    parser.add_argument(
        '--image-size', type=shared.count, help='pixels per side of centre crops (as they are)'
    )
    parser.add_argument('--batch-size', type=shared.count, help='images at a time per device')
    parser.add_argument(
        '--keep-features',
        action='store_true',
        help='for precision, recall and KID (8 kB per picture)',
    )
    arguments = parser.parse_args(argv)
    shared.check_pictures(parser, arguments)
    if not arguments.target.endswith('.npz'):
        parser.error(f'{arguments.target}: a reference ends in .npz')
    if arguments.npz and arguments.image_size:
        parser.error('--image-size goes with --folder and --tfds')

    from emigm_jax.evaluation.evaluator import Work
    from emigm_jax.evaluation.make_reference import check_new, make_reference
    from emigm_jax.io.progress import Bar

    check_new(arguments.target)  # before what may take long
    images, source = _images(arguments)
    size, batch = arguments.image_size, arguments.batch_size or Work.batch_size
    reference = make_reference(
        arguments.target,
        images,
        inception=arguments.inception,
        source=f'{source}, centre crops of {size}' if size else source,
        keep_features=arguments.keep_features,
        work=Work(batch, bar=Bar),
    )
    print(f'{len(images):,} images -> {arguments.target} ({reference.fingerprint})')
    return 0


def _images(arguments):
    """(`image_sets.ImageSet`, what it is called)."""
    from emigm_jax.evaluation import image_sets

    if arguments.npz:
        return image_sets.stored(arguments.npz), arguments.npz
    if arguments.folder:
        images = image_sets.folder(arguments.folder, arguments.image_size)
        shared.print_passed_over(images.passed_over)
        return images, arguments.folder
    from emigm_jax.data.tfds_source import TFDS

    split = arguments.split or 'train'
    source, place = TFDS(arguments.tfds, split, arguments.data_dir), f'{arguments.tfds} {split}'
    return image_sets.Pictures(source, place, arguments.image_size), place
