"""What must fit together between the groups of the settings."""

from emigm_jax.core import orders, reveal
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.errors import UserError
from emigm_jax.models.config import TELLS_PROBABILITY, ModelConfig


def check_order(model: ModelConfig, config: RevealConfig) -> None:
    """Raises UserError unless the order of generation makes sense for a model."""
    order = orders.order(config)
    if isinstance(order, orders.Adaptive) and model.head not in TELLS_PROBABILITY:
        raise UserError(
            f'sampling.reveal.order = {config.order!r} asks how probable what was drawn is, which '
            f'a head {model.head!r} cannot tell: choose another order, as random or halton'
        )
    if model.tokens:
        orders.check_positions(config.positions, model.tokens)


def check_guidance(label_drop: float, config: RevealConfig) -> None:
    """Raises UserError if generation is guided by a null class that was never trained."""
    if label_drop == 0.0 and reveal.guided_steps(config).any():
        raise UserError(
            f'guidance = {config.guidance:g} needs a null class, and this model is trained without '
            'one (loss.label_drop = 0): guidance 1 switches it off, or a weaker model guides it '
            '(--guide CHECKPOINT)'
        )
