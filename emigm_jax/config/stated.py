"""What the paper (arXiv 2503.07197 v3) shows in its figures, and what it says of them.

All its numbers here are FIDs of ImageNet at 256 pixels. Where only a drawing shows something, there
is nothing here.
"""

from typing import Any

from emigm_jax.config.figures import Claim, Number

_BEFORE = (0, 1, 2, 3)  # quarters of our training beside epochs 100 to 400
# Table 9: FID by epoch, "setup of Fig. 2(b)".
_TABLE_9 = {
    'linear w=1': (38.66, 30.55, 24.55, 24.96),
    'cosine w=1': (24.99, 16.70, 15.00, 12.39),
    'exp w=1': (28.63, 17.97, 11.57, 11.90),
    'log-exp w=1': (25.38, 11.81, 12.48, 9.91),
}
_TRAINING: dict[str, Any] = dict(across=('step',))

FIGURES: dict[str, dict[str, Any]] = {
    '2a': dict(
        title='Mask schedule in training',
        claims=(
            Claim('cosine is better than linear', 'Figure 2a', 'cosine', 'linear'),
            Claim('exp is unstable with the weight of MDM', 'Figure 2a'),
        ),
        **_TRAINING,
    ),
    '2b': dict(
        title='Weight of the loss',
        claims=(
            *(
                Claim(f'{n}: w = 1 is better', 'Figure 2b', f'{n} w=1', f'{n} MDM')
                for n in ('linear', 'cosine', 'exp')
            ),
            Claim('exp with w = 1 is better than cosine', 'Figure 2b', 'exp w=1', 'cosine w=1'),
            Claim('log-exp is better than exp', 'Table 9', 'log-exp w=1', 'exp w=1'),
        ),
        numbers=tuple(
            Number(curve, f'epoch {100 * (place + 1)}', fid, 'Table 9', place)
            for curve, row in _TABLE_9.items()
            for place, fid in zip(_BEFORE, row, strict=True)
        ),
        **_TRAINING,
    ),
    '2c': dict(
        title='Masked autoencoder',
        claims=(
            Claim(
                'a masked autoencoder is better than a single encoder',
                'Figure 2c',
                'masked autoencoder',
                'single encoder',
            ),
        ),
        **_TRAINING,
    ),
    '2d': dict(
        title='Time truncation',
        claims=(
            Claim('0.2 is better than 0', 'Figure 2d', 't_min 0.2', 't_min 0'),
            Claim('it is so from the beginning', 'Figure 2d', 't_min 0.2', 't_min 0', place=0),
            Claim('0.4 is no better than 0.2', 'Figure 2d', 't_min 0.2', 't_min 0.4'),
        ),
        **_TRAINING,
    ),
    '2e': dict(
        title='CFG with mask',
        claims=(
            Claim(
                'the mask token as null class is better, without guidance',
                'Figure 2e',
                'CFG with mask',
                'own null token',
            ),
        ),
        **_TRAINING,
    ),
    '3a': dict(
        title='Mask schedule in sampling',
        across=('steps',),
        claims=(
            *(
                Claim(f'at {n} of 256 steps {better} is better than {worse}', 'Figure 3a', *two, i)
                for i, n in enumerate((8, 16))
                for better, worse in (('exp', 'cosine'), ('cosine', 'linear'))
                for two in ((better, worse),)
            ),
            Claim('all improve with steps', 'Figure 3a'),
        ),
    ),
    '3b': dict(
        title='Solver of the diffusion head',
        across=('steps',),
        claims=(
            Claim(
                'at 8 of 256 steps DPM-Solver is better than DDPM',
                'Figure 3b',
                'DPM-Solver',
                'DDPM τ=1',
                place=0,
            ),
        ),
        numbers=(
            Number('DPM-Solver', '8 of 256 steps', 6.6, 'Figure 3b', 0),
            Number('DDPM τ=1', '8 of 256 steps', 10.6, 'Figure 3b', 0),
        ),
    ),
    '3c': dict(
        title='Interval of the guidance',
        across=('nfe',),
        claims=(Claim('the interval is as good, at less cost', 'Figure 3c'),),
    ),
    '4': dict(
        title='Sizes',
        across=('flops', 'seconds'),
        claims=(
            Claim('the more training FLOPs, the better', 'Figure 4a', 'double', 'quarter'),
            Claim('at 1e20 FLOPs L is better than B', 'Figure 4b'),
            Claim('at about 0.2 s per image FID is 1.8 of L and 2.3 of B', 'Figure 4c'),
            Claim('large models gain nothing beyond 64 steps', 'Figure 4c'),
        ),
    ),
    '7': dict(
        title='Guidance',
        across=('guidance',),
        both=True,
        claims=(Claim('FID and Inception Score depend on it very much', 'Figure 7'),),
    ),
    '8': dict(
        title='Grid of the interval',
        across=('interval',),
        both=True,
        claims=(
            Claim('best is (0.1, 0.3), at 0.6 times the cost of (0, 1)', 'Figure 8, K = 16'),
            Claim('good is t_min < t_max <= 0.5', 'Figure 8, K = 16'),
        ),
        numbers=(Number('eMIGM', 'interval (0, 1)', 22.48, 'Figure 8a', (0.0, 1.0)),),
    ),
}
