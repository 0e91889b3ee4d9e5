"""`emigm convert`: official weights in, self-describing checkpoints out, and back."""

import pathlib
import re

from emigm_jax.cli.main import Parser
from emigm_jax.errors import UserError

KINDS = ('emigm', 'mar', 'kl16', 'dc_ae', 'vqgan', 'inception')


def run(argv):
    """Runs the command."""
    parser = Parser(
        'convert',
        'Converts official eMIGM and MAR weights, the tokenizers KL-16, DC-AE and VQGAN, and the\n'
        'Inception network of FID (.pth, .ckpt, .safetensors, Flax msgpack, pickle, TensorFlow\n'
        '.pb, a Hugging Face folder) without running anything in them; or exports one of our\n'
        'checkpoints with official names (--to safetensors).',
        'emigm convert eMIGM_large_256_checkpoint.pth emigm-l-256\n'
        '  emigm convert kl16.ckpt kl16\n'
        '  emigm convert pt_inception-2015-12-05-6726825d.pth fid-inception\n'
        '  emigm convert emigm-l-256 emigm-l-256.safetensors --to safetensors',
    )
    parser.add_argument('source', help='file or folder to read, local or gs://')
    parser.add_argument('target', help='what to write, local or gs://; must not exist')
    parser.add_argument('--to', choices=('checkpoint', 'safetensors'), default='checkpoint')
    parser.add_argument('--kind', choices=KINDS, help='what the source is (default: recognised)')
    parser.add_argument(
        '--weights',
        default='',
        metavar='NAME',
        help='model_ema or model (default: model_ema if there); exporting: an EMA decay or params',
    )
    parser.add_argument(
        '--null',
        choices=('mask_token', 'fake_latent'),
        default='',
        help="eMIGM's shared token (default mask_token, as the official loader "
        'does; fake_latent is the averaged one)',
    )
    parser.add_argument(
        '--heads', type=int, help='attention heads, for sizes that were never published'
    )
    parser.add_argument('--dry-run', action='store_true', help='read and check, write nothing')
    arguments = parser.parse_args(argv)
    if arguments.heads is not None and arguments.heads < 1:
        parser.error('--heads must be at least 1')

    from emigm_jax.convert import rules

    try:
        return _export(arguments) if arguments.to == 'safetensors' else _import(arguments)
    except rules.Misfit as misfit:
        _table(misfit.rows)
        raise


def _table(rows):
    width = max(len(name) for _, name, _ in rows)
    for problem, name, detail in rows:
        print(f'{problem:<10}  {name:<{width}}  {detail}'.rstrip())


def _refuse(arguments, flags, what):
    for flag in flags:
        if getattr(arguments, flag):
            raise UserError(f'--{flag} does not apply to {what}')


def _import(arguments):
    from emigm_jax.checkpoints import store

    target = arguments.target
    store.check_free(target)
    if store.is_checkpoint(arguments.source):
        raise UserError(f'{arguments.source}: is converted already; `--to safetensors` exports it')
    save = _read(arguments)
    if arguments.dry_run:
        print('dry run: nothing written')
        return 0
    save(target)
    print(f'-> {target}')
    return 0


def _read(arguments):
    """Reads and converts; returns what writes the result. The source is let go of by then."""
    from emigm_jax.convert import recognise
    from emigm_jax.io.formats import torch_files

    source = arguments.source
    tree = torch_files.read(source)
    if not isinstance(tree, dict):
        raise UserError(f'{source}: holds no table of tensors')
    found = recognise.kind(tree, source)
    asked = 'masked' if arguments.kind in ('emigm', 'mar') else arguments.kind
    if asked and asked != found:
        raise UserError(
            f'{source}: is no {arguments.kind}, its tensors are those of {recognise.TITLES[found]}'
        )
    if found == recognise.INCEPTION:
        return _inception(arguments, tree)
    return _model(arguments, tree) if found == 'masked' else _tokenizer(arguments, tree, found)


def _model(arguments, tree):
    """Converts a model, says what it is, and returns what writes it."""
    import dataclasses

    from emigm_jax.checkpoints import runs
    from emigm_jax.config import recipes
    from emigm_jax.convert import models
    from emigm_jax.nn.functional import parameter_count

    method = arguments.kind or ''
    made = models.read(
        tree, arguments.source, method, arguments.weights, arguments.null, arguments.heads or 0
    )
    known = made.size in recipes.sizes(made.method)
    # Sizes that were never published get the settings of a middling model.
    size = made.size if known else (256, 'b')
    config = recipes.published(made.method, *size)
    config = dataclasses.replace(config, model=models.float32(made.model))
    title = f'{made.method} {size[1]} at {size[0]} pixels' if known else f'{made.method}, own sizes'
    print(
        f'{arguments.source}: {title}, {parameter_count(made.params):,} parameters, '
        f'weights {made.entry or "of the file"}'
    )
    for note in made.notes:
        print(note)
    if not known:
        print(
            f'no published sampling settings for these sizes: those of {size[1]} at {size[0]} '
            'pixels are put in'
        )
    presets = recipes.sampling(made.method, *size)
    source = {
        'file': pathlib.Path(arguments.source).name,
        'weights': made.entry,
        'method': made.method,
        'notes': made.notes,
        'unread': made.unread,
    }
    return lambda target: runs.export(target, config, made.params, presets, source)


def _name_of_folder(source):
    """', which calls itself ...' of a Hugging Face folder whose config.json has a name, or ''."""
    from emigm_jax.io.formats import local_files, torch_files

    if not local_files.exists(f'{source}/config.json'):
        return ''
    name = torch_files.read_config(source).get('model_name')
    return f', which calls itself {name!a}' if name else ''


def _tokenizer(arguments, tree, name):
    """Converts a tokenizer, says what it is, and returns what writes it."""
    import numpy as np

    from emigm_jax.convert import rules, tokenizer_tables
    from emigm_jax.nn.functional import parameter_count
    from emigm_jax.tokenizers import codec, learned

    _refuse(arguments, ('weights', 'heads', 'null'), 'a tokenizer')
    kind = learned.KINDS[name]
    config = kind.config()
    kept, left_out = tokenizer_tables.tensors(name, tree)
    shapes = kind.module.network(config).shapes()
    called = _name_of_folder(arguments.source)
    params = tokenizer_tables.params(name, config, tree, shapes, arguments.source + called)
    print(
        f'{arguments.source}{called}: {kind.title}, {parameter_count(params):,} numbers in '
        f'{len(kept)} tensors, stride {config.stride}'
    )
    _print_left_out(left_out)
    flat = rules.flatten(tree)
    counters = [n for n in left_out if re.fullmatch(tokenizer_tables.COUNTERS, n)]
    facts = {
        'source': {'file': pathlib.Path(arguments.source).name},
        # No use to us, but a strict PyTorch loader wants them back.
        'counters': {n: int(flat[n]) for n in counters if np.shape(flat[n]) == ()},
    }
    return lambda target: codec.save(
        target, codec.Codec(learned.Learned(name, config), params), **facts
    )


def _print_left_out(left_out):
    for reason in sorted(set(left_out.values())):
        count = sum(r == reason for r in left_out.values())
        print(f'left out: {count} tensors {reason}')


def _inception(arguments, tree):
    """Converts the network of FID, says what it is, and returns what writes it."""
    from emigm_jax.convert import inception_tables
    from emigm_jax.evaluation import inception
    from emigm_jax.nn.functional import parameter_count

    _refuse(arguments, ('weights', 'heads', 'null'), 'the Inception network')
    made = inception_tables.read(tree, arguments.source)
    print(
        f'{arguments.source}: Inception of FID with the names of {made.form.title}, '
        f'{parameter_count(made.params):,} numbers'
    )
    _print_left_out(made.left_out)
    facts = {
        'source': {'file': pathlib.Path(arguments.source).name, 'form': made.form.title},
        'counters': made.counters,
    }
    return lambda target: inception.save(target, made.params, **facts)


def _export(arguments):
    import numpy as np

    from emigm_jax.checkpoints import runs, store
    from emigm_jax.convert import inception_tables, models, rules, tokenizer_tables
    from emigm_jax.evaluation import inception
    from emigm_jax.io import files, paths
    from emigm_jax.io.formats import data_files
    from emigm_jax.tokenizers import codec

    target = paths.absolute(arguments.target)
    if not files.remote(target) and not target.parent.is_dir():
        raise UserError(f'{target}: its folder does not exist')
    with files.reported(target):
        taken = target.exists()
    if taken:
        raise UserError(f'{target}: exists already; choose another target or delete it')
    _refuse(arguments, ('kind', 'heads', 'null'), 'an export')
    stored = store.checkpoint(arguments.source) if store.is_checkpoint(arguments.source) else None
    if stored and inception.is_inception(stored):
        _refuse(arguments, ('weights',), 'the Inception network')
        params, name = inception.load(arguments.source).params, ''
        counters = stored.description.get('counters', {})
        tensors = inception_tables.official(params, counters)
    elif stored and codec.is_codec(stored):
        _refuse(arguments, ('weights',), 'a tokenizer')
        loaded, name = codec.load(arguments.source), ''
        entries = tokenizer_tables.SOURCES[loaded.spec.kind].entries(loaded.tokenizer.config)
        tensors = rules.to_official(entries, loaded.params)
        counters = stored.description.get('counters', {})
        tensors |= {n: np.asarray(count, np.int64) for n, count in counters.items()}
    else:
        saved = runs.require(arguments.source)
        params, name = saved.load_params(arguments.weights)
        unread = saved.source.get('unread', {})
        tensors = models.official(saved.config.model, params, unread)
        if saved.config.model.shared_null:
            print(
                'fake_latent: as in the file that was converted'
                if unread
                else 'mask_token, fake_latent: the one token of this checkpoint'
            )
    print(f'{arguments.source}: {len(tensors)} tensors{f", weights {name}" * bool(name)}')
    if arguments.dry_run:
        print('dry run: nothing written')
        return 0
    data_files.write_safetensors(target, tensors)
    print(f'-> {arguments.target}')
    return 0
