"""The paper's Table 1 on the digits: four methods, and eMIGM with one of its choices undone.

    emigm sweep configs/sweeps/comparison.py --out runs/comparison

All are trained for as many steps on the same pictures (8x8 digits as 64 tokens, the same network)
with three seeds, and drawn from in every order that goes with their head. Hours on 2 CPU cores,
minutes on a GPU, which likes --config.training.accumulate=1; it goes on where it stopped, and
`--share 1/2`, `--share 2/2` divide the work between processes.
Variants:
  methods  the four methods alone
  smoke    seconds; shows that everything runs, not that it learns
What was found: configs/README.md, configs/sweeps/comparison.md.
"""

from emigm_jax.config import family
from emigm_jax.config.load import config_of, load_config
from emigm_jax.config.sweeps import Sweep

LENGTH = {
    'training.accumulate': 8,  # which a CPU's cache likes: 1.5 times as fast
    'training.total': '800 steps',
    'training.warmup': '80 steps',
    'training.checkpoint_every': '100 steps',
    'training.sample_every': '0 steps',
}
# What the paper's Figures 2a and 2b change in eMIGM.
UNDONE = {
    'emigm-cosine': {'loss.masking.schedule': 'cosine'},
    'emigm-linear': {'loss.masking.schedule': 'linear'},
    'emigm-mdm-weight': {'loss.masking.weight': 'mdm'},
}


def get_sweep(variant=''):
    """What is trained and drawn."""
    if variant not in ('', 'methods', 'smoke'):
        raise ValueError(f'no variant {variant!r}; there are methods and smoke')
    smoke = variant == 'smoke'
    kind, length = ('smoke', {}) if smoke else ('digits', LENGTH)
    points = {
        method: config_of(load_config(f'{method}:{kind}'), length) for method in family.CHOICES
    }
    if not variant:
        points |= {name: config_of(points['emigm'], changes) for name, changes in UNDONE.items()}
    return Sweep(
        points,
        {
            'order': ('random', 'halton', 'confidence'),
            'steps': (2, 4) if smoke else (2, 4, 8, 16, 64),
        },
        seeds=(0, 1) if smoke else (0, 1, 2),
        num_images=20 if smoke else 500,
    )
