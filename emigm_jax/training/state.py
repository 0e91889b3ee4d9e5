"""Optimizer, learning rate and the train state, a plain dict {step, params, opt, ema}."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, Int32, PRNGKeyArray

from emigm_jax.config.settings import OptimizerConfig
from emigm_jax.nn.functional import Functional, Params

State = dict[str, Any]  # the train state, or its shapes

# Course of the learning rate after warmup: from 1 to 0 as training goes from 0 to 1.
LR_SCHEDULES = {
    'constant': jnp.ones_like,
    'cosine': lambda done: 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
}


def learning_rate(
    config: OptimizerConfig, batch: int, warmup_steps: int, total_steps: int
) -> Callable[[ArrayLike], Float32[Array, '']]:
    """Schedule step -> learning rate: linear warmup from 0, then constant or cosine."""
    peak = config.base_learning_rate * batch / 256
    shape = LR_SCHEDULES[config.lr_schedule]

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        done = jnp.clip((step - warmup_steps) / max(1, total_steps - warmup_steps), 0.0, 1.0)
        after = config.min_learning_rate + (peak - config.min_learning_rate) * shape(done)
        return jnp.where(step < warmup_steps, peak * step / max(1, warmup_steps), after)

    return rate


def decayed(params: Params) -> Params:
    """Which parameters take weight decay: bools (official util/misc.py:291-303)."""

    def rule(path, _):
        names = [p.key for p in path]
        # The table of codes is an embedding, wherever it is kept.
        inside = names[0] != 'head' or names[-1] == 'words'
        return inside and names[-1] not in ('bias', 'scale')

    return jax.tree_util.tree_map_with_path(rule, params)


def optimizer(
    config: OptimizerConfig, schedule: Callable[[ArrayLike], Array]
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule,
            config.beta1,
            config.beta2,
            config.epsilon,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
    )


def create(
    net: Functional,
    config: OptimizerConfig,
    tx: optax.GradientTransformation,
    key: PRNGKeyArray,
) -> State:
    """The state before the first step."""
    return begun(net.init(key), config, tx)


def begun(params: Params, config: OptimizerConfig, tx: optax.GradientTransformation) -> State:
    """The state before the first step of a run that begins with `params`."""
    return {
        'step': jnp.zeros((), jnp.int32),
        'params': params,
        'opt': tx.init(params),
        'ema': {str(decay): jax.tree.map(jnp.copy, params) for decay in config.ema_decays},
    }


def averaged(
    ema: dict[str, Params], params: optax.Params, config: OptimizerConfig, step: Int32[Array, '']
) -> dict[str, Params]:
    """One EMA step of every decay: e <- d e + (1 - d) p, the shared mask/null token included.

    With warm-up d is min(d, (1 + n) / (10 + n)) in step n from 0, as in TensorFlow's
    ExponentialMovingAverage(num_updates=n).
    """

    def one(decay):
        n = step.astype(jnp.float32)
        d = jnp.minimum(decay, (1.0 + n) / (10.0 + n)) if config.ema_warmup else decay
        return jax.tree.map(lambda e, p: d * e + (1.0 - d) * p, ema[str(decay)], params)

    return {str(decay): one(decay) for decay in config.ema_decays}
