"""`emigm evaluate`: FID and its kin of a checkpoint, a folder of images or an npz."""

import pathlib
import time

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser
from emigm_jax.errors import UserError

METRICS = 'fid,sfid,inception_score,precision_recall,fid_infinite,fid_standard_error'


def run(argv):
    """Runs the command."""
    parser = Parser(
        'evaluate',
        'Measures images against a reference: those a checkpoint makes (class-balanced, image i '
        'from\nseed i), a folder, or an npz in the layout of ADM. The same command goes on after '
        'an\ninterruption. Models of the digits, with no --reference, are scored in pixel space.',
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
        help='how many to generate, class by class (50000; digits: 1000)',
    )
    parser.add_argument(
        '--reference',
        help='statistics of real images: ADM, eMIGM, MAR, MeanFlow, '
        'pytorch-fid, EDM2, or `emigm prepare reference`',
    )
    parser.add_argument('--inception', help='its checkpoint, from `emigm convert`')
    parser.add_argument('--metrics', default=METRICS, help=f'of them, or kid ({METRICS})')
    parser.add_argument(
        '--out', help='folder of the results and of what is saved on the way (evaluation)'
    )
    parser.add_argument('--save-npz', metavar='FILE', help='write the images there, as ADM does')
    parser.add_argument('--compare', choices=('paper',), help="print the paper's figures beside")
    parser.add_argument('--tokenizer', help="checkpoint of the latents' tokenizer (KL-16, DC-AE)")
    parser.add_argument('--preset', help='published sampling settings of a model: fast or best')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), help='of matrix products')
    parser.add_argument('--json', metavar='FILE', help='write the scores there, too')
    shared.add_sampling(parser)
    shared.add_processes(parser)
    arguments = parser.parse_args(argv)
    for name in ('json', 'save_npz'):
        file = getattr(arguments, name)
        if file and '://' not in file and not pathlib.Path(file).absolute().parent.is_dir():
            raise UserError(f'--{name.replace("_", "-")} {file}: its folder does not exist')
    for file in (arguments.json, arguments.save_npz, arguments.out):
        if file and '://' in file:
            from emigm_jax.io import access

            access.probe(file)
    if arguments.num_images is not None and not arguments.checkpoint:
        raise UserError('--num-images goes with --checkpoint')
    if arguments.compare and not arguments.checkpoint:
        raise UserError('--compare goes with --checkpoint')
    if arguments.batch_size < 1:
        raise UserError('--batch-size must be at least 1')

    if arguments.reference or not arguments.checkpoint:
        for name in ('reference', 'inception'):
            if not getattr(arguments, name):
                parser.error(f'--{name} is required')
    with shared.join(arguments):
        if arguments.reference:
            return _measured(arguments)
        from emigm_jax.cli import evaluate_digits

        return evaluate_digits.run(arguments)


def _measured(arguments):
    import tqdm

    from emigm_jax.evaluation import image_sets, inception, measure, metrics, references
    from emigm_jax.io import files, npz
    from emigm_jax.nn.functional import fingerprint
    from emigm_jax.parallel import agreement

    names = tuple(arguments.metrics.split(','))
    metrics.check(names)
    paper = _paper(arguments) if arguments.compare else {}
    # What one process cannot read ends all of them.
    reference, extractor, (images, about) = agreement.agreed(
        lambda: (
            references.read(arguments.reference),
            inception.load(arguments.inception),
            _images(arguments),
        )
    )
    folder = arguments.out or 'evaluation'
    plan = measure.Plan(names, arguments.batch_size, keep_images=bool(arguments.save_npz))
    settings = {
        **about,
        'images': len(images),
        'reference': reference.fingerprint,
        'inception': fingerprint(extractor.params),
        'metrics': list(names),
        'batch_size': arguments.batch_size,
        'kept_images': plan.keep_images,
    }
    shifts = {'pool': reference.mean}
    if 'sfid' in names and reference.spatial_mean is not None:
        shifts['spatial'] = reference.spatial_mean
    network = measure.Network(extractor.params)
    bar = lambda count: tqdm.tqdm(
        total=count, unit=' images', disable=None if agreement.first() else True
    )
    start = time.perf_counter()
    with bar(len(images)) as shown:
        found = measure.totals(images, folder, settings, network, shifts, plan, shown.update)
    seconds = (time.perf_counter() - start) / found.made if found.made else None
    real = None
    if plan.keep_features and reference.features is None and reference.images is not None:
        if agreement.first():
            print(
                f'features of the {len(reference.images):,} images in {arguments.reference}',
                flush=True,
            )
        with bar(len(reference.images)) as shown:
            real = measure.features(
                image_sets.Stored(reference.images), network, arguments.batch_size, shown.update
            )
    first = agreement.first()
    agreement.leave()
    if not first:
        return 0
    print('computing the metrics', flush=True)
    inputs = metrics.Inputs(found.totals, reference, found.features, real)
    values, missing = metrics.compute(inputs, names)
    result = {
        **values,
        'missing': missing,
        'images': len(images),
        'reference': {'name': reference.name, 'fingerprint': reference.fingerprint},
        'settings': settings,
        'seconds_per_image': seconds,
    }
    _print(result, about, paper)
    files.write_json(f'{folder}/result.json', result)
    if arguments.json:
        files.write_json(arguments.json, result)
    if arguments.save_npz:
        npz.write_rows(arguments.save_npz, len(images), measure.stored(folder, 'images'))
    return 0


def _images(arguments):
    """(one of `image_sets`, JSON-like facts that decide what its images are)."""
    from emigm_jax.evaluation import image_sets

    if arguments.images:
        made = image_sets.Pictures(image_sets.Below(arguments.images), arguments.images)
        return made, {'source': 'folder', 'content': made.fingerprint()}
    if arguments.npz:
        made = image_sets.stored(arguments.npz)
        return made, {'source': 'npz', 'content': made.fingerprint()}
    import dataclasses

    from emigm_jax.checkpoints import runs
    from emigm_jax.nn.functional import fingerprint
    from emigm_jax.sampling import generator
    from emigm_jax.tokenizers import codec

    saved = runs.require(arguments.checkpoint)
    config = shared.sampling_config(arguments, saved)
    count = 50_000 if arguments.num_images is None else arguments.num_images
    if count < 2:
        raise UserError('--num-images must be at least 2')
    decoder = None
    if arguments.tokenizer:
        decoder = codec.load(arguments.tokenizer, arguments.dtype)
    make = generator.from_checkpoint(
        saved, config, arguments.weights, arguments.batch_size, decoder, arguments.dtype
    )
    # Pixels have no weights to tell apart.
    spec = make.codec.spec
    decoder = make.codec.fingerprint if make.codec.params else spec.kind
    reveal = config.reveal
    guided = reveal.guidance != 1.0
    share = (reveal.guidance_to - reveal.guidance_from) * guided
    facts = {
        'source': 'checkpoint',
        'step': saved.step,
        'weights': make.weights,
        'content': fingerprint(make.params),
        'tokenizer': decoder,
        'sampling': dataclasses.asdict(config),
        'dtype': arguments.dtype or saved.config.model.dtype,
        'nfe_as_the_paper_counts': f'{reveal.steps}x{1 + share:g}',
        'nfe': make.nfe,
    }
    return image_sets.Generated(make, count, saved.config.model.classes), facts


def _paper(arguments):
    """{preset: row} of the paper for the checkpoint's size."""
    from emigm_jax.checkpoints import runs
    from emigm_jax.config import published
    from emigm_jax.models.emigm import preset_name

    model = runs.require(arguments.checkpoint).config.model
    found = published.rows(model.method, *(preset_name(model) or (0, '')))
    if not found:
        print("the paper has no model of this checkpoint's sizes")
    return found


# name: (title, digits)
_ROWS = {
    'fid': ('FID', 3),
    'fid_standard_error': ('  its standard error', 3),
    'fid_infinite': ('  at infinitely many images', 3),
    'sfid': ('sFID', 3),
    'inception_score': ('Inception Score', 2),
    'inception_score_std': ('  over its splits', 2),
    'precision': ('precision (k=3)', 4),
    'recall': ('recall (k=3)', 4),
    'kid': ('KID', 6),
    'kid_std': ('  over its subsets', 6),
}


def _print(result, about, paper):
    columns = ''.join(f'{f"paper {row.nfe}":>16}' for row in paper.values())
    print(f'{"":28}{"here":>12}{columns}')
    for name, (title, digits) in _ROWS.items():
        if name in result:
            told = [getattr(row, name, None) for row in paper.values()]
            shown = ''.join(f'{"-" if value is None else value:>16}' for value in told)
            print(f'{title:28}{result[name]:12.{digits}f}{shown}')
    for name, reason in result['missing'].items():
        print(f'{name}: not computed, {reason}')
    reference = result['reference']
    seconds = result['seconds_per_image']
    rate = 'all made before' if seconds is None else f'{seconds:.4f} s per image'
    print(
        f'{result["images"]:,} images against {reference["name"]} ({reference["fingerprint"]}), '
        f'{rate}'
    )
    if about['source'] == 'checkpoint':
        print(
            f'step {about["step"]}, weights {about["weights"]}, NFE '
            f'{about["nfe_as_the_paper_counts"]} as the paper counts, {about["nfe"]} as run'
        )
