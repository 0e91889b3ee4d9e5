"""The Inception network of FID under the names of its carriers."""

import collections
import re
from typing import NamedTuple

import numpy as np

from emigm_jax.convert import rules
from emigm_jax.convert.rules import Entry
from emigm_jax.convert.tokenizer_tables import COUNTERS
from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception, inception_plan

OTHER_CLASSES = 1000  # of the Inception v3 networks that were trained anew, as torchvision's


class Form(NamedTuple):
    """How one kind of file names things."""

    title: str
    mark: str  # a tensor that only this kind of file has
    names: dict  # name of a convolution in our plan: name of its scope in the file
    unit: tuple  # (behind the scope, our leaf, operation)
    classifier: tuple  # (whole name, our leaf, operation)
    ignored: tuple  # (pattern of whole names, why they are not needed)


def _plain(separator):
    return {conv.name: conv.name.replace('.', separator) for conv, _ in inception_plan.network()}


def _numbered(scope):
    """The function that names things as TensorFlow did: x, x_1, x_2 within a scope."""
    used = collections.Counter()

    def fresh(stem):
        used[stem] += 1
        return f'{scope}{stem}' + f'_{used[stem] - 1}' * (used[stem] > 1)

    return fresh


def _scopes(path, scope=''):
    """{name of a convolution: its scope in TensorFlow's graph} of a path.

    A block is `mixed`. In a block, a path that is one convolution has no scope of its own, others
    are a `tower`.
    """
    fresh, found = _numbered(scope), {}
    for step in path:
        match step:
            case inception_plan.Conv():
                found[step.name] = fresh('conv')
            case inception_plan.Split(paths):
                inside = _numbered(fresh('mixed') + '/')
                for branch in paths:
                    match branch:
                        case (inception_plan.Conv() as conv,):
                            found[conv.name] = inside('conv')
                        case _:
                            found |= _scopes(branch, inside('tower') + '/')
    return found


TORCH = Form(
    title='PyTorch',
    mark='Conv2d_1a_3x3.conv.weight',
    names=_plain('.'),
    unit=(
        ('.conv.weight', 'kernel', 'conv'),
        ('.bn.weight', 'scale', 'copy'),
        ('.bn.bias', 'bias', 'copy'),
        ('.bn.running_mean', 'mean', 'copy'),
        ('.bn.running_var', 'variance', 'copy'),
    ),
    classifier=(('fc.weight', 'kernel', 'transpose'), ('fc.bias', 'bias', 'copy')),
    ignored=((COUNTERS, 'count training batches; the averages are fixed'),),
)
JAX_FID = Form(
    title='jax-fid',
    mark='Conv2d_1a_3x3/conv/kernel',
    names=_plain('/'),
    unit=(
        ('/conv/kernel', 'kernel', 'copy'),
        ('/bn/scale', 'scale', 'copy'),
        ('/bn/bias', 'bias', 'copy'),
        ('/bn/mean', 'mean', 'copy'),
        ('/bn/var', 'variance', 'copy'),
    ),
    classifier=(('fc/kernel', 'kernel', 'copy'), ('fc/bias', 'bias', 'copy')),
    ignored=(),
)
TENSORFLOW = Form(
    title='TensorFlow',
    mark='conv/conv2d_params',
    names=_scopes(inception_plan.LOWER + inception_plan.UPPER),
    unit=(
        ('/conv2d_params', 'kernel', 'copy'),
        ('/batchnorm/gamma', 'scale', 'copy'),
        ('/batchnorm/beta', 'bias', 'copy'),
        ('/batchnorm/moving_mean', 'mean', 'copy'),
        ('/batchnorm/moving_variance', 'variance', 'copy'),
    ),
    classifier=(('softmax/weights', 'kernel', 'copy'), ('softmax/biases', 'bias', 'copy')),
    ignored=(
        (
            r'(?!softmax/)(?!(.*/)?conv(_\d+)?/(conv2d_params|batchnorm/)).*',
            'of its preprocessing',
        ),
    ),
)
FORMS = (TORCH, JAX_FID, TENSORFLOW)


class Converted(NamedTuple):
    """The network as it goes into a checkpoint."""

    form: Form
    params: dict
    left_out: dict  # {name: why}
    counters: dict  # {name: number}: no use to us, but some PyTorch loaders want them back


def form(tree):
    """The `Form` of the content of a file, None if it is no Inception network."""
    flat = rules.flatten(tree)
    return next((form for form in FORMS if form.mark in flat), None)


def entries(form):
    """The `rules.Entry` of each of our parameters."""
    made = [
        Entry(f'{conv.attribute}/{ours}', (form.names[conv.name] + theirs,), operation)
        for conv, _ in inception_plan.network()
        for theirs, ours, operation in form.unit
    ]
    return made + [Entry(f'fc/{ours}', (name,), op) for name, ours, op in form.classifier]


def read(tree, origin):
    """Converts the content of a file that has a `form`.

    Args:
      tree: from `torch_files.read`.
      origin: file name for messages.

    Raises:
      UserError: it is the Inception v3 of 1000 classes, whose features are others.
      rules.Misfit: tensors are missing, unexpected or misshapen.
    """
    found, flat = form(tree), rules.flatten(tree)
    why = lambda name: next((why for rule, why in found.ignored if re.fullmatch(rule, name)), None)
    left_out = {name: reason for name in flat if (reason := why(name))}
    if OTHER_CLASSES in getattr(flat.get(found.classifier[0][0]), 'shape', ()):
        raise UserError(
            f'{origin}: is an Inception v3 of {OTHER_CLASSES} classes; FID needs the '
            f'one of {inception_plan.CLASSES}: pt_inception-2015-12-05-6726825d.pth of '
            'pytorch-fid, or that of torch-fidelity'
        )
    kept = {name: value for name, value in flat.items() if name not in left_out}
    shapes = inception.network().shapes()
    params = rules.to_params(entries(found), kept, shapes, f'{origin}, Inception of FID')
    counters = {
        name: int(flat[name])
        for name in left_out
        if re.fullmatch(COUNTERS, name) and np.shape(flat[name]) == ()
    }
    return Converted(found, params, left_out, counters)


def official(params, counters):
    """{name: array} under the names of the PyTorch ports, bit for bit."""
    tensors = rules.to_official(entries(TORCH), params)
    return tensors | {name: np.asarray(count, np.int64) for name, count in counters.items()}
