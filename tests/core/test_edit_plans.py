"""Plans of images of which some tokens are given."""

import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.core import edit_plans, orders, reveal, schedules
from emigm_jax.core.reveal import RevealConfig

CONFIGS = (
    RevealConfig(steps=8),
    RevealConfig(steps=8, counts='per_image', times='cosine'),
    RevealConfig(steps=12, rule='ancestral', schedule='linear', guidance_to=0.9),
    RevealConfig(steps=8, rule='fixed', schedule='cosine', guidance_schedule='linear'),
    RevealConfig(steps=8, rule='fixed', schedule='cosine', order='confidence'),
)


@pytest.mark.parametrize('tokens', [4, 16, 64, 100])
def test_every_number_of_masked_tokens_has_one_company(tokens):
    companies = [edit_plans.alike(n, tokens) for n in range(1, tokens + 1)]
    assert all(n in company for n, company in enumerate(companies, 1))
    assert [n for company in dict.fromkeys(companies) for n in company] == list(
        range(1, tokens + 1)
    )
    assert len(set(companies)) <= edit_plans.GROUPS + 1


@pytest.mark.parametrize('config', CONFIGS, ids=range(len(CONFIGS)))
def test_a_plan_is_that_of_what_is_masked(config):
    tokens, masked, seeds = 64, np.array([41, 48, 45]), [3, 5, 7]
    plan = edit_plans.plan(config, tokens, masked, seeds)
    for row, (n, seed) in enumerate(zip(masked.tolist(), seeds, strict=True)):
        np.testing.assert_array_equal(plan.counts[row], reveal.plan(config, n, [seed]).counts[0])
        # Nothing else in a call decides an image, and neither do its shapes.
        alone = edit_plans.plan(config, tokens, masked[row : row + 1], [seed])
        np.testing.assert_array_equal(plan.counts[row], alone.counts[0])
        np.testing.assert_array_equal(plan.guidance[row], alone.guidance[0])
        for budget, other in zip(plan[2:], alone[2:], strict=True):
            np.testing.assert_array_equal(budget, other)
    visible = reveal.visible_before(plan.counts, tokens)
    used = plan.counts > 0
    assert (np.where(used, visible, 0) <= plan.visible_budget).all()
    assert (plan.counts <= plan.reveal_budget).all()
    assert (plan.reveal_budget <= plan.read_budget).all()
    if config.order == 'confidence':
        assert (np.where(used, tokens - visible, 0) <= plan.read_budget).all()


@pytest.mark.parametrize('config', CONFIGS, ids=range(len(CONFIGS)))
def test_guidance_goes_by_what_is_revealed(config):
    """Where a share is given, it is as late as where generation has revealed as much."""
    np.testing.assert_array_equal(
        edit_plans.guided_steps(config, 64, 64), reveal.guided_steps(config)
    )
    gamma = lambda time: schedules.SCHEDULES[config.schedule](np.asarray(time))
    masked = 0.5 * gamma(reveal.GRIDS[config.times](config.steps)[1:])
    inside = (gamma(config.guidance_from) < masked) & (masked <= gamma(config.guidance_to))
    found = edit_plans.plan(config, 64, np.array([32]), [0])
    np.testing.assert_array_equal(found.guidance[0] != 1.0, inside)
    assert (found.guided >= inside).all()
    assert inside.any()


def test_an_interval_may_lie_beyond_all_times():
    always = RevealConfig(steps=8, guidance_from=-1.0, guidance_to=2.0, schedule='poly-0.5')
    assert edit_plans.guided_steps(always, 3, 64).all()
    never = RevealConfig(steps=8, guidance_from=1.0, guidance_to=2.0)
    assert not edit_plans.guided_steps(never, 3, 64).any()


def test_what_is_given_comes_first_and_the_order_stays():
    order = np.array([[3, 1, 0, 2], [0, 1, 2, 3]], np.int32)
    masked = np.array([[1, 0, 0, 1], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(
        orders.given_first(*map(jnp.asarray, (order, masked))), [[1, 2, 3, 0], [0, 1, 2, 3]]
    )
