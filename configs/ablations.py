"""The paper's figures 2, 3, 4, 7 and 8 (arXiv 2503.07197) as sweeps, on the digits or other data.

    emigm sweep configs/ablations.py:figure=2a --out runs/ablations
    emigm sweep configs/ablations.py:figure=7,data=digits64 --out runs/ablations
    emigm sweep configs/ablations.py:figure=2b,data=my.py:best --out runs/ablations

Figures share the runs in one folder: 3a, 3b, 3c, 7 and 8 draw from the run that 2e ends with.
Variants:
  figure=2a|2b|2c|2d|2e  training: schedule, weight, masked autoencoder, truncation, CFG with mask
  figure=3a|3b|3c        sampling: schedule, solver, interval of the guidance
  figure=4               sizes: FID over training FLOPs and over seconds per image
  figure=7|8             guidance, the grid of its interval
  data=digits            8x8 digits as 16 tokens (the default); digits64: as 64; or any config with
                         its variant, from which data, network and length are taken; with
                         data=digits:smoke a figure takes a minute and shows that everything runs
What was found: configs/README.md, configs/sweeps/ablations.md.
"""

from emigm_jax.config import stated
from emigm_jax.config.figures import Figure
from emigm_jax.config.load import config_of, load_config
from emigm_jax.config.settings import IN_PIXELS
from emigm_jax.config.sweeps import Sweep

# As in configs/sweeps/comparison.py, so that its runs of eMIGM serve here, too.
LENGTH = {
    'training.accumulate': 8,  # which a CPU's cache likes: 1.5 times as fast
    'training.total': '800 steps',
    'training.warmup': '80 steps',
    'training.checkpoint_every': '100 steps',
    'training.sample_every': '0 steps',
}
# So that the longest figure takes half an hour on two cores.
SHORTER = {
    **LENGTH,
    'training.total': '600 steps',
    'training.warmup': '60 steps',
    'training.checkpoint_every': '75 steps',
}
DATA = {
    'digits': ('emigm:digits', {**SHORTER, 'data.patch': 2}),
    'digits64': ('emigm:digits', LENGTH),
}
EMIGM = {
    'model.mae': True,
    'model.shared_null': True,
    'loss.masking.schedule': 'exp',
    'loss.masking.distribution': 'bernoulli',
    'loss.masking.weight': 'constant',
    'loss.masking.times': 'clamp',
    'loss.masking.t_min': 0.2,
    'loss.normalize': 'image',
}
# The paper's path backwards: what it had not yet chosen before each of the figures 2e, 2d, 2c, 2a.
OWN_NULL = {'model.shared_null': False}
WHOLE = {**OWN_NULL, 'loss.masking.t_min': 0.0}
SINGLE = {**WHOLE, 'model.mae': False}
# Eq. 4 sums over the masked tokens of all images, and so does the official code here.
BOUND = {**SINGLE, 'loss.masking.weight': 'mdm', 'loss.normalize': 'batch'}


def _schedule(name):
    """One of training and sampling, as the official flag is."""
    return {'loss.masking.schedule': name, 'sampling.reveal.schedule': name}


THREE = ('linear', 'cosine', 'exp')
POINTS = {
    '2a': {name: {**BOUND, **_schedule(name)} for name in THREE},
    '2b': {
        **{f'{name} w=1': {**SINGLE, **_schedule(name)} for name in (*THREE, 'log-exp')},
        **{f'{name} MDM': {**BOUND, **_schedule(name)} for name in THREE},
    },
    '2c': {'single encoder': SINGLE, 'masked autoencoder': WHOLE},
    '2d': {
        't_min 0': WHOLE,
        't_min 0.2': OWN_NULL,
        't_min 0.4': {**OWN_NULL, 'loss.masking.t_min': 0.4},
    },
    '2e': {'own null token': OWN_NULL, 'CFG with mask': {}},
}
SIZES = {'quarter': 0.25, 'half': 0.5, 'base': 1.0, 'double': 2.0}  # of the widths
EVERYWHERE = {'interval': (0.0, 1.0), 'guidance_schedule': 'constant'}
MAR = {'interval': (0.0, 1.0), 'guidance_schedule': 'linear'}  # its guidance, which Figure 3a has
DDPM = {'solver': 'ddpm', 'solver_steps': 100}
EDGES = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)


def _looks(figure, reveal):
    """What is drawn with, by name, beside the options that go across."""
    own = (reveal.guidance_from, reveal.guidance_to)
    return {
        '3a': {name: {**MAR, **DDPM, 'schedule': name} for name in THREE},
        '3b': {
            'DPM-Solver': {**MAR, 'solver': 'dpm', 'solver_steps': 14, 'temperature': 1.0},
            **{f'DDPM τ={t:g}': {**MAR, **DDPM, 'temperature': t} for t in (1.0, 0.9)},
        },
        '3c': {'all steps': EVERYWHERE, 'interval': {**EVERYWHERE, 'interval': own}},
        '4': {'': {}},
        '7': {'': EVERYWHERE},
        '8': {'': {'guidance_schedule': 'constant'}},
    }.get(figure, {'': {'guidance': 1.0}})  # the paper compares what it trains without guidance


def _draws(figure, tokens):
    """What goes across, after the number of steps, which the paper's 256 tokens scale with."""
    few, some = max(2, min(16, tokens // 2)), max(2, tokens // 4)
    all_steps = tuple(tokens >> k for k in range(5, -1, -1) if tokens >> k > 1)
    grid = tuple((low, high) for high in EDGES[::-1] for low in EDGES if low < high)
    return {
        **{name: {'steps': all_steps} for name in ('3a', '3b', '3c')},
        '4': {'steps': all_steps[-3:]},
        '7': {'steps': (some,), 'guidance': (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)},
        '8': {'steps': (few,), 'interval': grid},
    }.get(figure, {'steps': (some,)})


def _scaled(config, factor):
    """Settings of another width, which the heads divide."""
    model = config.model
    return {
        'model.width': max(1, round(model.width * factor / model.heads)) * model.heads,
        'model.head_width': max(1, round(model.head_width * factor)),
    }


def _base(data):
    """The settings of a name in DATA, or of any config."""
    name, changes = DATA.get(data, (data, {}))
    return config_of(load_config(name), {**changes, **EMIGM, **_schedule('exp')})


def _tokens(config):
    """How many there are, if the settings say it, else as many as the paper has."""
    if config.data.name == 'digits':
        return (8 // config.data.patch) ** 2
    return config.model.tokens or 256


def get_sweep(variant=''):
    """What is trained, drawn and shown."""
    name, _, data = variant.partition(',data=')
    figure = name.removeprefix('figure=')
    if figure not in stated.FIGURES:
        known = '|'.join(stated.FIGURES)
        raise ValueError(f'no variant {variant!r}; there are figure={known}, and then ,data=CONFIG')
    base = _base(data or 'digits')
    points = POINTS.get(figure, {'eMIGM': {}})
    if figure == '4':
        points = {size: _scaled(base, factor) for size, factor in SIZES.items()}
    return Sweep(
        {point: config_of(base, changes) for point, changes in points.items()},
        _draws(figure, _tokens(base)),
        num_images=500 if base.data.name in IN_PIXELS else 10_000,
        looks=_looks(figure, base.sampling.reveal),
        figure=Figure(figure, **stated.FIGURES[figure]),
    )
