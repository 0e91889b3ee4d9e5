"""Scores by name: what they are called where people read them, which way is better, their form."""

from typing import NamedTuple


class Score(NamedTuple):
    """How a score is shown."""

    title: str  # that of a deviation is set in from the left
    digits: int  # after the point
    less: bool = True  # whether less is better
    of: str = ''  # the score whose standard error or deviation this is

    def text(self, value: float) -> str:
        """A value as people read it; one that rounds to zero has no sign."""
        return f'{value:z.{self.digits}f}'


SCORES = {
    'fid': Score('FID', 3),
    'fid_standard_error': Score('  its standard error', 3, of='fid'),
    'fid_infinite': Score('FID, infinitely many images', 3),
    'sfid': Score('sFID', 3),
    'inception_score': Score('Inception Score', 2, less=False),
    'inception_score_std': Score('  over its splits', 2, of='inception_score'),
    'accuracy': Score('class accuracy (1-NN)', 4, less=False),
    'frechet_distance': Score('Frechet distance (pixels)', 3),
    'precision': Score('precision (k=3)', 4, less=False),
    'recall': Score('recall (k=3)', 4, less=False),
    'kid': Score('KID', 6),
    'kid_std': Score('  over its subsets', 6, of='kid'),
    'bits_per_dim': Score('bits per dimension', 4),
    'bits_per_dim_error': Score('  its standard error', 4, of='bits_per_dim'),
    'bits_per_dim_in_steps': Score('  of images made in steps', 4),
}
DEVIATIONS = {score.of: name for name, score in SCORES.items() if score.of}

# What `emigm evaluate` measures unless told otherwise, of `metrics.METRICS`.
DEFAULT = (
    'fid',
    'sfid',
    'inception_score',
    'precision_recall',
    'fid_infinite',
    'fid_standard_error',
)
