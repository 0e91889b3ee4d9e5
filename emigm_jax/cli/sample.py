"""`emigm sample`: images of given classes and seeds from a checkpoint."""

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'sample',
        'Generates one image for every class and seed: PNG files in OUT/images, a grid and an npz.',
        'emigm sample --checkpoint runs/digits --classes 0-9 --seeds 0-7 --out samples/\n  '
        'emigm sample --checkpoint emigm-l-256 --tokenizer kl16 --classes 207,360 --out samples/',
    )
    parser.add_argument(
        '--classes',
        default='',
        help="'3', '1,5', '0-9', names of classes, all, or none (null); default: all, or eight "
        'of many; name:7 is the class that is called 7',
    )
    shared.add_drawing(parser, 'samples')
    arguments = parser.parse_args(argv)
    seeds = shared.numbers('seeds', arguments.seeds)

    from emigm_jax.checkpoints import runs
    from emigm_jax.config import nested
    from emigm_jax.io import access, paths
    from emigm_jax.sampling import save

    saved = runs.require(arguments.checkpoint)
    config = shared.sampling_config(arguments, saved)
    if arguments.dry_run:
        shared.print_config(config)
        return 0
    access.probe(arguments.out)
    model = shared.model(arguments, saved)
    labels, numbers = shared.once(*model.pairs(shared.classes(arguments.classes, model), seeds))
    make, out = model.with_sampling(config), arguments.out
    settings = nested.flatten(make.about())
    settings |= {'classes': [int(label) for label in labels[:: len(seeds)]], 'seeds': seeds}
    save.check(out, settings, arguments.overwrite)  # before the work
    images = make.images(labels, numbers)
    save.begin(out, settings, arguments.overwrite)
    save.save_samples(out, images, labels, numbers, model.classes, saved.class_names)
    print(
        f'{len(labels)} images, weights {make.weights}, NFE {make.nfe} -> '
        f'{paths.absolute(arguments.out)}'
    )
    return 0
