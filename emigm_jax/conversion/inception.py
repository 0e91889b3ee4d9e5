"""The Inception network of FID under the names of its PyTorch ports -> our checkpoint, and back."""

import pathlib

from emigm_jax.checkpoints import store
from emigm_jax.conversion import left_out, rules
from emigm_jax.conversion.conversion import Conversion, Export
from emigm_jax.conversion.options import Kind, Options
from emigm_jax.conversion.rules import Entry, Tensors
from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception, inception_plan

OTHER_CLASSES = 1000  # of the Inception v3 networks that were trained anew, as torchvision's
_NAMES = 'PyTorch'  # whose names: pytorch-fid and torch-fidelity have the same

# (official, ours, operation)
_UNIT = (
    ('conv.weight', 'kernel', 'conv'),
    ('bn.weight', 'scale', 'copy'),
    ('bn.bias', 'bias', 'copy'),
    ('bn.running_mean', 'mean', 'copy'),
    ('bn.running_var', 'variance', 'copy'),
)
_CLASSIFIER = (('fc.weight', 'fc/kernel', 'transpose'), ('fc.bias', 'fc/bias', 'copy'))


def entries() -> list[Entry]:
    """One for each of our parameters."""
    units = [
        Entry(f'{conv.attribute}/{ours}', (f'{conv.name}.{theirs}',), operation)
        for conv, _ in inception_plan.network()
        for theirs, ours, operation in _UNIT
    ]
    return units + [Entry(ours, (theirs,), operation) for theirs, ours, operation in _CLASSIFIER]


def read(places: dict[str, Tensors], source: str, options: Options) -> Conversion:
    """Converts the content of a file of pytorch-fid or torch-fidelity.

    Args:
      places: the tensors at each entry of the file; the first one is read.
      source: for messages.
      options: none of them applies.

    Raises:
      UserError: it is the Inception v3 of 1000 classes, whose features are others.
      rules.Misfit: tensors are missing, unexpected or misshapen.
    """
    options.refuse('the Inception network')
    tensors = next(iter(places.values()))
    if OTHER_CLASSES in getattr(tensors.get('fc.weight'), 'shape', ()):
        raise UserError(
            f'{source}: is an Inception v3 of {OTHER_CLASSES} classes; FID needs the '
            f'one of {inception_plan.CLASSES}: pt_inception-2015-12-05-6726825d.pth of '
            'pytorch-fid, or that of torch-fidelity'
        )
    kept, unused = left_out.split(tensors, (left_out.COUNTERS,))
    shapes = inception.network().shapes()
    params = rules.to_params(
        entries(), kept, shapes, f'{source}, Inception of FID', options.allow_non_finite
    )
    return Conversion(
        kind=Kind.INCEPTION,
        origin=source,
        title=f'Inception of FID with the names of {_NAMES}',
        details='numbers',
        params=params,
        facts={
            'source': {'file': pathlib.Path(source).name, 'form': _NAMES},
            'counters': left_out.counters(tensors, unused),
        },
        writer=lambda target, params, facts: inception.save(target, params, **facts),
        left_out=unused,
    )


def export(source: str, stored: store.Checkpoint | None, weights: str) -> Export:
    """Our checkpoint under the names of `read`, bit for bit; it has one set of weights."""
    Options(weights=weights).refuse('the Inception network')
    assert stored is not None  # whose description says what it is
    params = inception.of(stored).params
    counted = left_out.counted(stored.description)
    return Export(source, rules.to_official(entries(), params) | counted)
