"""What to tell about averages of weights that have hardly seen the training."""

from emigm_jax.config.settings import OptimizerConfig

MUCH = 0.1  # of an average that is still its first value


def remark(config: OptimizerConfig, weights: str, steps: int) -> str:
    """One line if an average is no average of the training; else ''.

    Args:
      config: of the run.
      weights: a decay, or 'params'.
      steps: that the run has made, or will have.
    """
    # With warm-up a tenth is left after the first step already.
    if weights == 'params' or config.ema_warmup or (left := float(weights) ** steps) <= MUCH:
        return ''
    return (
        f'after {steps:,} steps the average {weights} is still {left:.0%} what the run began with: '
        '--weights params samples and evaluates the weights themselves, and '
        '--config.optimizer.ema_warmup=True trains an average that fits short runs'
    )
