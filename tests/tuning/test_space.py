"""What is tried suits the model, and makes sense."""

import dataclasses

import numpy as np
import pytest

from emigm_jax.config import family
from emigm_jax.config.load import load_config
from emigm_jax.core.solvers import SolverConfig
from emigm_jax.data import sizes
from emigm_jax.tuning import space

CONFIGS = {name: sizes.known(load_config(f'{name}:digits')) for name in family.CHOICES}


def proposals(config, near, count=150):
    rng = np.random.default_rng(0)
    return [space.propose(rng, config, config.sampling, near) for _ in range(count)]


@pytest.mark.parametrize('near', [False, True], ids=['far', 'near'])
@pytest.mark.parametrize('method', CONFIGS)
def test_every_proposal_makes_sense(method, near):
    config = CONFIGS[method]
    axes, own = space.axes(config), config.sampling
    found = proposals(config, near)  # or `changed` would have raised
    changes = [space.differences(way, own) for way in found]
    assert {name for change in changes for name in change} == axes.keys()  # each is tried
    for way in found:
        assert way.reveal.steps <= 64
        assert way.reveal.guidance != 1.0 or way.reveal.guidance_schedule == 'constant'
        assert way.solver.name == 'ddpm' or way.solver.temperature == 1.0
        assert way.seed == own.seed and way.reveal.rule == own.reveal.rule
    changed = np.mean([len(change) for change in changes])
    assert changed < 4.5 if near else changed > 5.0
    assert len({*found}) > 110


def test_options_of_a_head():
    for method, config in CONFIGS.items():
        axes, codes = space.axes(config), config.model.head == 'categorical'
        assert ('solver' in axes, 'nucleus' in axes) == (not codes, codes), method
        assert ('confidence' in axes['order'].values) == codes
        assert max(axes['steps'].values) == 64


def test_a_model_without_a_null_class_is_not_guided():
    config = CONFIGS['maskgit']
    loss = dataclasses.replace(config.loss, label_drop=0.0)
    reveal = dataclasses.replace(config.sampling.reveal, guidance=1.0)
    sampling = dataclasses.replace(config.sampling, reveal=reveal)
    config = dataclasses.replace(config, loss=loss, sampling=sampling)
    assert not {'guidance', 'interval', 'guidance_schedule'} & space.axes(config).keys()
    assert {way.reveal.guidance for way in proposals(config, False)} == {1.0}


def test_values_between_those_that_are_tried():
    """Own settings need not be on the grid; from there it goes to their neighbours."""
    config = CONFIGS['emigm']
    sampling = dataclasses.replace(config.sampling, solver=SolverConfig(steps=17))
    config = dataclasses.replace(config, sampling=sampling)
    found = {way.solver.steps for way in proposals(config, True)}
    assert found == {11, 14, 17, 20, 28}
    assert space.value(sampling, 'interval') == (0.1, 0.6)
    assert space.differences(sampling, sampling) == {}
