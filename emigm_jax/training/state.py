"""Optimizer, learning rate and the train state, a plain dict {step, params, opt, ema}."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from emigm_jax.errors import UserError, check_choice, check_range

# Course of the learning rate after warmup: from 1 to 0 as training goes from 0 to 1.
LR_SCHEDULES = {
    'constant': jnp.ones_like,
    'cosine': lambda done: 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and EMA with the official values (paper.md section 4)."""

    base_learning_rate: float = 1e-4  # per 256 images: lr = base * batch / 256
    lr_schedule: str = 'constant'  # after warmup: constant, or cosine down to min_learning_rate
    min_learning_rate: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.02  # transformer matrices and embeddings; no biases, norms, head
    clip: float = 3.0  # global gradient norm
    ema_decays: tuple = (0.9999,)  # no warmup, starts at the initial weights

    def __post_init__(self):
        check_choice('optimizer.lr_schedule', self.lr_schedule, LR_SCHEDULES)
        if not self.ema_decays:
            raise UserError('optimizer.ema_decays must name at least one decay (0 keeps a copy)')
        for decay in self.ema_decays:
            check_range('optimizer.ema_decays', decay, 0.0, 0.99999999)
        check_range('optimizer.base_learning_rate', self.base_learning_rate, 0.0)
        check_range('optimizer.min_learning_rate', self.min_learning_rate, 0.0)
        check_range('optimizer.weight_decay', self.weight_decay, 0.0)
        check_range('optimizer.clip', self.clip, 1e-12)


def learning_rate(config, batch, warmup_steps, total_steps):
    """Schedule step -> learning rate: linear warmup from 0, then constant or cosine."""
    peak = config.base_learning_rate * batch / 256
    shape = LR_SCHEDULES[config.lr_schedule]

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        done = jnp.clip((step - warmup_steps) / max(1, total_steps - warmup_steps), 0.0, 1.0)
        after = config.min_learning_rate + (peak - config.min_learning_rate) * shape(done)
        return jnp.where(step < warmup_steps, peak * step / max(1, warmup_steps), after)

    return rate


def decayed(params):
    """Which parameters take weight decay: a dict of bools (official util/misc.py:291-303)."""

    def rule(path, _):
        names = [p.key for p in path]
        return names[0] != 'head' and names[-1] not in ('bias', 'scale')

    return jax.tree_util.tree_map_with_path(rule, params)


def optimizer(config, schedule):
    """Clip by global norm, then AdamW."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule, config.beta1, config.beta2, config.epsilon,
            weight_decay=config.weight_decay, mask=decayed,
        ),
    )  # fmt: skip


def create(net, config, tx, key):
    """The state before the first step."""
    params = net.init(key)
    return {
        'step': jnp.zeros((), jnp.int32),
        'params': params,
        'opt': tx.init(params),
        'ema': {str(decay): jax.tree.map(jnp.copy, params) for decay in config.ema_decays},
    }


def averaged(ema, params, decays):
    """One EMA step of every decay: e <- d e + (1 - d) p, the shared mask/null token included."""
    step = lambda d: jax.tree.map(lambda e, p: d * e + (1.0 - d) * p, ema[str(d)], params)
    return {str(d): step(d) for d in decays}
