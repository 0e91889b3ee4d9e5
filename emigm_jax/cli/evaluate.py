"""`emigm evaluate`: FID and its kin of a checkpoint, a folder of images or an npz."""

import functools

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser
from emigm_jax.errors import UserError
from emigm_jax.evaluation.score_table import DEFAULT, SCORES


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'evaluate',
        'Measures images against a reference: those a checkpoint makes (class-balanced, image i '
        'from\nseed i), a folder, or an npz in the layout of ADM. The same command goes on after '
        'an\ninterruption. Models of digits, folders and TFDS, with no --reference, are scored in\n'
        'pixel space.',
        'emigm evaluate --checkpoint emigm-l-256 --tokenizer kl16 --inception fid-inception \\\n'
        '      --reference VIRTUAL_imagenet256_labeled.npz --num-images 50000 --compare paper\n'
        '  emigm evaluate --images samples/ --reference ref.npz --inception fid-inception\n'
        '  emigm evaluate --checkpoint runs/digits --num-images 1000 --json scores.json',
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--checkpoint', help='workdir, step folder, or converted model')
    what.add_argument('--images', metavar='FOLDER', help='of pictures of one size')
    what.add_argument('--npz', metavar='FILE', help='with uint8 images in arr_0')
    parser.add_argument(
        '--num-images',
        type=int,
        help='how many to generate, class by class (50000; in pixels: 1000)',
    )
    parser.add_argument(
        '--reference',
        help='statistics of real images: ADM, eMIGM, MAR, MeanFlow, pytorch-fid, EDM2, or `emigm '
        'prepare reference`; or a folder of pictures, beside which theirs are made and kept',
    )
    parser.add_argument('--inception', help='its checkpoint, from `emigm convert`')
    metrics = ','.join(DEFAULT)
    parser.add_argument(
        '--metrics',
        default=metrics,
        help=f'of them, or kid; or bits_per_dim alone, of models of codes ({metrics})',
    )
    parser.add_argument(
        '--data',
        help='bits_per_dim: pictures to code, of the kind that the model was trained on (those '
        'that data.held_back kept from it)',
    )
    parser.add_argument(
        '--draws', type=shared.count, help='bits_per_dim: passes of the network per picture (32)'
    )
    parser.add_argument(
        '--out', help='folder of the results and of what is saved on the way (evaluation)'
    )
    parser.add_argument('--save-npz', metavar='FILE', help='write the images there, as ADM does')
    parser.add_argument('--compare', choices=('paper',), help="print the paper's figures beside")
    parser.add_argument('--tokenizer', help='checkpoint of the tokenizer (KL-16, DC-AE, VQGAN)')
    parser.add_argument('--preset', help='published settings, fast or best, or of `emigm tune`')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), help='of matrix products')
    parser.add_argument('--json', metavar='FILE', help='write the scores there, too')
    shared.add_sampling(parser)
    shared.add_processes(parser)
    arguments = parser.parse_args(argv)
    _check_writable(arguments)
    if arguments.num_images is not None and not arguments.checkpoint:
        raise UserError('--num-images goes with --checkpoint')
    if arguments.compare and not arguments.checkpoint:
        raise UserError('--compare goes with --checkpoint')

    names = arguments.metrics.split(',')
    codes = 'bits_per_dim' in names
    if codes and len(names) > 1:
        parser.error('--metrics bits_per_dim is measured alone')
    for name in ('data', 'draws'):
        if getattr(arguments, name) and not codes:
            parser.error(f'--{name} goes with --metrics bits_per_dim')
    if codes and (not arguments.checkpoint or arguments.reference):
        parser.error('--metrics bits_per_dim needs --checkpoint, and no --reference')
    if arguments.guide and (codes or not arguments.checkpoint):
        parser.error('--guide goes with --checkpoint, to draw images')
    if arguments.reference or not arguments.checkpoint:
        for name in ('reference', 'inception'):
            if not getattr(arguments, name):
                parser.error(f'--{name} is required')
    with shared.join(arguments):
        way = _bits if codes else _against_reference if arguments.reference else _in_pixels
        result = way(arguments)
        if result is not None and arguments.json:
            from emigm_jax.io import files

            files.write_json(arguments.json, result.to_json())
        return 0


def _check_writable(arguments):
    """Refuses places before the work that could not be written after it."""
    from emigm_jax.io import access, files, paths

    for name in ('json', 'save_npz'):
        file = getattr(arguments, name)
        if file and not files.remote(file) and not paths.absolute(file).parent.is_dir():
            raise UserError(f'--{name.replace("_", "-")} {file}: its folder does not exist')
    for file in (arguments.json, arguments.save_npz, arguments.out):
        if file:
            access.probe(file)


def _against_reference(arguments):
    from emigm_jax.evaluation import (
        evaluate,
        evaluator,
        inception,
        make_reference,
        measure,
        metrics,
    )
    from emigm_jax.io import files, npz
    from emigm_jax.parallel import agreement

    names = tuple(arguments.metrics.split(','))
    metrics.check(names)
    paper = _paper(arguments) if arguments.compare else {}
    # What one process cannot read ends all of them.
    reference, network, (images, about) = agreement.agreed(
        lambda: (
            make_reference.at_hand(arguments.reference),
            inception.load(arguments.inception),
            _images(arguments),
        )
    )
    folder = arguments.out or 'evaluation'
    work = _work(arguments, about, folder=folder, keep_images=bool(arguments.save_npz))
    against = evaluate.against(images, reference, network, names, work)
    result = evaluator.measure_and_leave(against, images, work)
    if result is not None:
        _print(result, paper)
        files.write_json(f'{folder}/result.json', result.to_json())
        if arguments.save_npz:
            npz.write_rows(arguments.save_npz, len(images), measure.stored(folder, 'images'))
    return result


def _in_pixels(arguments):
    """Without a reference: in pixel space, beside real pictures against real ones."""
    from emigm_jax.checkpoints import runs
    from emigm_jax.config.settings import IN_PIXELS
    from emigm_jax.data import real
    from emigm_jax.evaluation import evaluator
    from emigm_jax.evaluation.in_pixels import InPixels
    from emigm_jax.parallel import agreement

    saved = runs.require(arguments.checkpoint)
    if saved.config.data.name not in IN_PIXELS:
        raise UserError(
            f'{saved.path}: needs --reference and --inception (only models of '
            f'{", ".join(IN_PIXELS)} are scored in pixel space)'
        )
    classes = saved.config.model.classes
    count = arguments.num_images
    if count is None:
        count = max(1, 1000 // classes) * classes
    if count < 4 or count % classes:
        raise UserError(f'--num-images must be a multiple of the {classes} classes, not {count}')
    images, about = _generated(arguments, saved, count)
    about = {name: about[name] for name in ('step', 'weights', 'nfe')}
    real_ones = agreement.agreed(lambda: real.images(saved.config.data))
    work = _work(arguments, about)
    result = evaluator.measure_and_leave(InPixels(real_ones), images, work)
    if result is not None:
        _print_in_pixels(result)
    return result


def _bits(arguments):
    """Bounds of pictures that the model has not seen."""
    from emigm_jax.api import bits, model
    from emigm_jax.checkpoints import runs
    from emigm_jax.parallel import agreement
    from emigm_jax.tokenizers import codec

    saved = runs.require(arguments.checkpoint)
    config = shared.sampling_config(arguments, saved)
    decoder = codec.load(arguments.tokenizer, arguments.dtype) if arguments.tokenizer else None
    opened = model.opened(saved, decoder, arguments.weights, arguments.dtype, arguments.batch_size)
    result = bits.measured(
        opened, config, arguments.data or '', arguments.draws or bits.DRAWS, arguments.num_images
    )
    if not agreement.first():  # all processes have found the same
        return None
    _print_bits(result)
    return result


def _work(arguments, about, **more):
    from emigm_jax.evaluation.evaluator import Work
    from emigm_jax.io.progress import Bar
    from emigm_jax.parallel import agreement

    first = agreement.first()
    bar = functools.partial(Bar, quiet=not first)
    say = functools.partial(print, flush=True) if first else lambda line: None
    return Work(arguments.batch_size, about=about, bar=bar, say=say, **more)


def _images(arguments):
    """(`image_sets.ImageSet`, JSON-like facts that decide what its images are)."""
    from emigm_jax.evaluation import image_sets
    from emigm_jax.parallel import agreement

    if arguments.images:
        images = image_sets.folder(arguments.images)
        if agreement.first():
            shared.print_passed_over(images.passed_over)
        return images, {'source': 'folder', 'content': images.fingerprint()}
    if arguments.npz:
        images = image_sets.stored(arguments.npz)
        return images, {'source': 'npz', 'content': images.fingerprint()}
    from emigm_jax.checkpoints import runs

    saved = runs.require(arguments.checkpoint)
    count = 50_000 if arguments.num_images is None else arguments.num_images
    if count < 2:
        raise UserError('--num-images must be at least 2')
    return _generated(arguments, saved, count)


def _generated(arguments, saved, count):
    """(`image_sets.Generated` by a checkpoint, JSON-like facts that decide its images)."""
    from emigm_jax.api.evaluate import generated
    from emigm_jax.sampling import generator
    from emigm_jax.tokenizers import codec

    config = shared.sampling_config(arguments, saved)
    decoder = codec.load(arguments.tokenizer, arguments.dtype) if arguments.tokenizer else None
    make = generator.from_checkpoint(
        saved,
        config,
        arguments.weights,
        arguments.batch_size,
        decoder,
        arguments.dtype,
        shared.guide(arguments),
    )
    return generated(saved, make, count)


def _paper(arguments):
    """{preset: row} of the paper for the checkpoint's size."""
    from emigm_jax.checkpoints import runs
    from emigm_jax.config import published
    from emigm_jax.models.emigm import preset_name

    model = runs.require(arguments.checkpoint).config.model
    rows = published.rows(model.method, *(preset_name(model) or (0, '')))
    if not rows:
        print("the paper has no model of this checkpoint's sizes")
    return rows


def _print(result, paper):
    columns = ''.join(f'{f"paper {row.nfe}":>16}' for row in paper.values())
    print(f'{"":28}{"here":>12}{columns}')
    for name, score in SCORES.items():
        if name in result.scores:
            theirs = [getattr(row, name, None) for row in paper.values()]
            beside = ''.join(f'{"-" if value is None else value:>16}' for value in theirs)
            print(f'{score.title:28}{score.text(result.scores[name]):>12}{beside}')
    for name, reason in result.missing.items():
        print(f'{name}: not computed, {reason}')
    reference, settings = result.reference, result.settings
    seconds = result.seconds_per_image
    rate = 'all made before' if seconds is None else f'{seconds:.4f} s per image'
    print(
        f'{result.images:,} images against {reference["name"]} ({reference["fingerprint"]}), {rate}'
    )
    if settings['source'] == 'checkpoint':
        print(
            f'step {settings["step"]}, weights {settings["weights"]}, NFE '
            f'{settings["nfe_as_the_paper_counts"]} as the paper counts, {settings["nfe"]} as run'
        )


def _print_in_pixels(result):
    print(f'{"":26} {"generated":>10} {"real halves":>12}')
    for name, score in SCORES.items():
        if name in result.scores:  # of so few images that three digits are enough
            values = f'{result.scores[name]:z10.3f} {result.real_halves[name]:z12.3f}'
            print(f'{score.title:26} {values}')
    settings = result.settings
    by_class = sorted(settings['accuracy_by_class'].items(), key=lambda pair: pair[1])
    if len(by_class) > 1:
        lowest = ', '.join(f'{name} {value:z.3f}' for name, value in by_class[:3])
        print(f'lowest accuracy by class: {lowest}')
    print(
        f'{result.images} images of step {settings["step"]}, weights {settings["weights"]}, '
        f'NFE {settings["nfe"]}, {result.seconds_per_image:.4f} s per image with compilation'
    )


def _print_bits(result):
    for name in ('bits_per_dim', 'bits_per_dim_error', 'bits_per_dim_in_steps'):
        print(f'{SCORES[name].title:28}{SCORES[name].text(result.scores[name]):>12}')
    settings = result.settings
    print(
        f'{settings["bits_per_token"]:.3f} bits per token, {settings["nats_per_image"]:.2f} nats '
        f'per picture; of the error {settings["bits_per_dim_error_of_draws"]:.4f} is due to draws'
    )
    print(
        f'{result.images:,} pictures ({settings["data"]}), {settings["draws"]} draws each, step '
        f'{settings["step"]}, weights {settings["weights"]}, in steps: K = {settings["steps"]}'
    )
