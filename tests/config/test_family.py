"""The four methods: what their configs differ in, and nothing else."""

import pytest

from emigm_jax.config import family, nested
from emigm_jax.config.load import load_config
from emigm_jax.errors import UserError

# The choices of the paper's Table 1, what a token is, and how a method samples.
CHOICES = (
    'data.levels',
    'loss.masking.',
    'loss.normalize',
    'loss.label_smoothing',
    'loss.copies',
    'model.head',
    'model.shared_null',
    'sampling.',
)


def settings(name):
    return nested.flatten(nested.as_dict(load_config(name)))


@pytest.mark.parametrize('variant', ['digits', 'smoke'])
@pytest.mark.parametrize('method', family.CHOICES)
def test_methods_differ_in_their_choices_alone(method, variant):
    ours, others = settings(f'{method}:{variant}'), settings(f'emigm:{variant}')
    differ = {name: value for name, value in ours.items() if value != others[name]}
    assert differ == family.CHOICES[method]
    assert all(name.startswith(CHOICES) for name in differ)


def test_a_variant_that_is_none():
    with pytest.raises(UserError, match="no variant 'digts'; there are digits, smoke, and"):
        load_config('mdm:digts')


def test_table_1_of_the_paper():
    rows = {}
    for method in family.CHOICES:
        config = load_config(f'{method}:digits')
        masking = config.loss.masking
        rows[method] = masking.distribution, masking.weight, config.model.head
    assert rows == {
        'emigm': ('bernoulli', 'constant', 'diffusion'),
        'mar': ('fixed', 'constant', 'diffusion'),
        'maskgit': ('fixed', 'constant', 'categorical'),
        'mdm': ('bernoulli', 'mdm', 'categorical'),
    }


@pytest.mark.parametrize('method', family.CHOICES)
def test_imagenet_recipes_make_the_same_choices(method):
    full, tiny, small = (load_config(f'{method}:{v}') for v in ('size=b', 'size=b,tiny', 'digits'))
    for config in (full, tiny):
        assert config.loss.masking.distribution == small.loss.masking.distribution
        assert config.loss.masking.weight == small.loss.masking.weight
        assert config.model.head == small.model.head
        assert config.sampling.reveal.order == small.sampling.reveal.order
        assert config.sampling.reveal.rule == small.sampling.reveal.rule
        config.model.check_sizes()
    assert tiny.model.width < 64 < full.model.width


@pytest.mark.parametrize('weight', ['constant', 'mdm'])
@pytest.mark.parametrize('distribution', ['bernoulli', 'fixed'])
@pytest.mark.parametrize('method', ['emigm', 'mdm'])
def test_any_combination_is_a_config(method, distribution, weight):
    flags = [
        f'--config.loss.masking.{k}={v}'
        for k, v in (('distribution', distribution), ('weight', weight), ('schedule', 'log-exp'))
    ]
    config = load_config(f'{method}:smoke', flags)
    assert (config.loss.masking.distribution, config.loss.masking.weight) == (distribution, weight)
