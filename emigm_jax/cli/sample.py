"""`emigm sample`: images of given classes and seeds from a checkpoint."""

import concurrent.futures

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser
from emigm_jax.errors import UserError


def run(argv):
    """Runs the command."""
    parser = Parser(
        'sample',
        'Generates one image for every class and seed: PNG files, a grid and an npz.',
        'emigm sample --checkpoint runs/digits --classes 0-9 --seeds 0-7 --out samples/\n  '
        'emigm sample --checkpoint emigm-l-256 --tokenizer kl16 --classes 207,360 --out samples/',
    )
    parser.add_argument(
        '--checkpoint', required=True, help='workdir, step folder, or converted model'
    )
    parser.add_argument(
        '--classes',
        default='',
        help="'3', '1,5', '0-9', all, or none (null); default: all, or eight of many",
    )
    parser.add_argument('--seeds', default='0-7', help="image numbers, '0-15' (default 0-7)")
    parser.add_argument(
        '--out', default='samples', help='folder to write to, local or gs:// (samples)'
    )
    parser.add_argument('--tokenizer', help="checkpoint of the latents' tokenizer (KL-16, DC-AE)")
    parser.add_argument('--preset', help='published sampling settings of a model: fast or best')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), help='of matrix products')
    shared.add_sampling(parser)
    parser.add_argument('--dry-run', action='store_true', help='print the settings and stop')
    arguments = parser.parse_args(argv)
    seeds = shared.numbers('seeds', arguments.seeds)

    import numpy as np

    from emigm_jax.checkpoints import runs
    from emigm_jax.data import class_names
    from emigm_jax.io import access, npz, paths, png
    from emigm_jax.sampling import generator
    from emigm_jax.tokenizers import learned

    saved = runs.require(arguments.checkpoint)
    config = shared.sampling_config(arguments, shared.preset(saved, arguments.preset))
    classes = _classes(arguments.classes, saved.config.model.classes)
    if arguments.dry_run:
        shared.print_config(config)
        return 0
    tokenizer = None
    if arguments.tokenizer:
        tokenizer = learned.load(arguments.tokenizer, arguments.dtype)
    out = paths.absolute(arguments.out)
    access.probe(out)
    make = generator.from_checkpoint(
        saved, config, arguments.weights, arguments.batch_size, tokenizer, arguments.dtype
    )
    labels, numbers = np.repeat(classes, len(seeds)), np.tile(seeds, len(classes))
    pictures = make.images(labels, numbers)
    names = ['null' if label < 0 else f'{label:04}' for label in labels]
    files = [out / f'class_{n}_seed_{s:06}.png' for n, s in zip(names, numbers, strict=True)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a bucket takes its time
        list(pool.map(png.save, files, pictures))
    # One class per row, one seed per column.
    grid = png.grid(png.upscaled(pictures), len(seeds))
    titles = class_names.titles(classes, saved.config.model.classes)
    png.save(out / 'grid.png', png.labelled(grid, titles))
    npz.write(out / 'samples.npz', dict(images=pictures, labels=labels, seeds=numbers))
    print(f'{len(labels)} images, weights {make.weights}, NFE {make.nfe} -> {out}')
    return 0


# What papers on ImageNet show: golden retriever, otter, red panda, geyser, macaw, valley, balloon,
# arctic fox.
_SHOWN = (207, 360, 387, 974, 88, 979, 417, 279)


def _classes(text, count):
    from emigm_jax.data import class_names

    if text == 'none':
        return [-1]
    if not text:
        few = count if count <= 20 else 8
        return list(_SHOWN) if count == class_names.IMAGENET else list(range(few))
    classes = list(range(count)) if text == 'all' else shared.numbers('classes', text)
    for label in classes:
        if label >= count:
            raise UserError(
                f'--classes: there is no class {label}, the model knows 0 to {count - 1}'
            )
    return classes
