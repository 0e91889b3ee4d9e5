"""Scores by name: what they are called where people read them, and how many digits are shown."""

from typing import NamedTuple


class Score(NamedTuple):
    """How a score is shown; what belongs to the one above is set in from the left."""

    title: str
    digits: int  # after the point


SCORES = {
    'fid': Score('FID', 3),
    'fid_standard_error': Score('  its standard error', 3),
    'fid_infinite': Score('  at infinitely many images', 3),
    'sfid': Score('sFID', 3),
    'inception_score': Score('Inception Score', 2),
    'inception_score_std': Score('  over its splits', 2),
    'accuracy': Score('class accuracy (1-NN)', 4),
    'frechet_distance': Score('Frechet distance (pixels)', 3),
    'precision': Score('precision (k=3)', 4),
    'recall': Score('recall (k=3)', 4),
    'kid': Score('KID', 6),
    'kid_std': Score('  over its subsets', 6),
}

# What `emigm evaluate` measures unless told otherwise, of `metrics.METRICS`.
DEFAULT = (
    'fid',
    'sfid',
    'inception_score',
    'precision_recall',
    'fid_infinite',
    'fid_standard_error',
)
