"""What other settings do to the schedule of a run that goes on."""

from emigm_jax.config import resuming
from emigm_jax.config.settings import Config
from emigm_jax.training import state


def compared(saved: Config, config: Config, step: int, examples: int) -> list[str]:
    """Lines that say what changes at `step` of a run on so many examples; [] if nothing does."""
    changes = resuming.differences(saved, config)
    if not changes:
        return []
    before, after = (_facts(each, step, examples) for each in (saved, config))
    table = [('', 'until now', 'from here')]
    table += [(name, f'{old}', f'{new}') for name, (old, new) in changes.items()]
    table += [(name, before[name], after[name]) for name in before]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left, middle, right = widths
    return [f'  {a:{left}}  {b:>{middle}}  {c:>{right}}'.rstrip() for a, b, c in table]


def _facts(config, step, examples):
    """{what the settings mean at `step`: a number to show}."""
    warmup, total = (config.steps(name, examples) for name in ('warmup', 'total'))
    batch = config.training.batch_size
    rate = state.learning_rate(config.optimizer, batch, warmup, total)
    return {
        'steps in all': f'{total:,}',
        'warm-up ends at step': f'{warmup:,}',
        f'learning rate at step {step:,}': f'{float(rate(step)):.3g}',
        # The order of the data is a function of the step.
        'the data go on at epoch': f'{step * batch / examples:.2f}',
    }
