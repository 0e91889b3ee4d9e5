"""`emigm edit`: a picture with some of it drawn anew by a checkpoint."""

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser
from emigm_jax.errors import UserError


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'edit',
        'Draws anew what is masked in a picture, for every class and seed: PNG files in\n'
        'OUT/images, and OUT/sheet.png: the picture, the edge of the mask in tokens, the results.',
        'emigm edit --checkpoint runs/digits --picture 3.png --box 0,0,0.5,1 --classes 8\n  '
        'emigm edit --checkpoint emigm-l-256 --tokenizer kl16 --picture dog.jpg --mask mask.png '
        "--classes 'tabby'",
    )
    parser.add_argument(
        '--picture', required=True, help='of any format and size; cropped as in training'
    )
    what = parser.add_argument_group('what is drawn anew').add_mutually_exclusive_group(
        required=True
    )
    what.add_argument('--mask', metavar='FILE', help='where it is white (greys from 128 on)')
    what.add_argument(
        '--box', metavar='LEFT,TOP,RIGHT,BOTTOM', type=_edges, help='a rectangle, edges as shares'
    )
    what.add_argument(
        '--margin', metavar='SHARE', type=float, help='what is around it when it is made smaller'
    )
    what.add_argument(
        '--share', metavar='SHARE', type=float, help='this much of it, which each seed chooses'
    )
    parser.add_argument(
        '--classes', required=True, help="'3', '1,5', '0-9', names of classes, all, or none (null)"
    )
    parser.add_argument(
        '--blend',
        choices=('blurred', 'exact', 'none'),
        help='beside the mask: the picture, with a soft edge (the default) or as it is, or what '
        'its tokens decode to',
    )
    parser.add_argument(
        '--grow',
        type=int,
        metavar='TOKENS',
        help='by which the mask grows (1 where its edge is soft, else 0)',
    )
    shared.add_drawing(parser, 'edited')
    arguments = parser.parse_args(argv)
    seeds = shared.numbers('seeds', arguments.seeds)

    from emigm_jax.checkpoints import runs
    from emigm_jax.config import nested
    from emigm_jax.io import access, paths
    from emigm_jax.sampling import editing, originals, save
    from emigm_jax.sampling.editing import Blend

    saved = runs.require(arguments.checkpoint)
    config = shared.sampling_config(arguments, saved)
    blend = Blend(arguments.blend, arguments.grow)
    if arguments.dry_run:
        shared.print_config(config)
        return 0
    access.probe(arguments.out)
    image = originals.opened(arguments.picture, 'a picture')
    model, out = shared.model(arguments, saved), arguments.out
    make = model.with_sampling(config)
    labels, numbers = shared.once(*model.pairs(shared.classes(arguments.classes, model), seeds))
    wanted = arguments.mask, arguments.box, arguments.margin, arguments.share
    picture, mask, about = editing.masked(make, image, *wanted)
    edit, labels, numbers = editing.prepare(make, picture, mask, labels, numbers, blend)
    print(f'{arguments.picture}: {about}\n{edit.described()}', flush=True)
    settings = nested.flatten(make.about()) | edit.about()
    settings |= {'classes': [*dict.fromkeys(labels.tolist())], 'seeds': [*dict.fromkeys(seeds)]}
    save.check(out, settings, arguments.overwrite)  # before the work
    images = editing.images(make, edit, labels, numbers)
    save.begin(out, settings, arguments.overwrite)
    save.save_edits(out, edit, images, labels, numbers, model.classes, saved.class_names)
    print(
        f'{len(labels)} images, weights {make.weights}, NFE {editing.nfe(make, edit)} -> '
        f'{paths.absolute(out)}'
    )
    return 0


def _edges(text):
    try:
        left, top, right, bottom = map(float, text.split(','))
    except ValueError:
        raise UserError(f"--box must look like '0,0,0.5,1', not {text!r}") from None
    return left, top, right, bottom
