"""The Inception Score (Salimans et al. 2016), as torch-fidelity computes it.

    IS of a split = exp(mean over its images of KL(p(y|x) || q(y))),   q = mean of p(y|x)

reported as mean and standard deviation (ddof 0) over ten splits of the shuffled images. The shuffle
matters: generated images come in the order of their classes, so unshuffled splits would hold a
tenth of the classes each. Since sum_x KL = sum_x p.log p - n q.log q, a split is known by three
sums, and as the permutation depends on the number of images alone, every image's split is known
before it is made. Images may therefore come in any order and any batches.
"""

import numpy as np

from emigm_jax.errors import UserError

SPLITS = 10
_SEED = 2020


def check_count(count: int) -> None:
    """Raises UserError for fewer images than splits."""
    if count < SPLITS:
        raise UserError(f'the Inception Score needs at least {SPLITS} images, not {count}')


def split_of_images(count: int) -> np.ndarray:
    """The split (count,) int32 of every image: torch-fidelity's shuffle, cut in ten.

    Raises:
      UserError: fewer images than splits.
    """
    check_count(count)
    order = np.random.RandomState(_SEED).permutation(count)
    splits = np.empty(count, np.int32)
    for i in range(SPLITS):
        splits[order[i * count // SPLITS : (i + 1) * count // SPLITS]] = i
    return splits


def from_sums(
    counts: np.ndarray, probabilities: np.ndarray, entropies: np.ndarray
) -> tuple[float, float]:
    """(mean, standard deviation) of the score over the splits.

    Args:
      counts: (S,) images in each split.
      probabilities: (S, C) sums of p(y|x).
      entropies: (S,) sums of p.log p, so minus the entropies, in nats.

    Raises:
      UserError: a split without images, or numbers that are not finite.
    """
    counts, sums, entropies = (
        np.asarray(x, np.float64) for x in (counts, probabilities, entropies)
    )
    if counts.min() < 1:
        raise UserError(
            f'the Inception Score needs images in all {len(counts)} splits, '
            f'they hold {counts.astype(int).tolist()}'
        )
    if not (np.isfinite(sums).all() and np.isfinite(entropies).all()):
        raise UserError('the Inception Score cannot be computed: the logits are not finite')
    q = sums / counts[:, None]
    marginal = (q * np.log(np.where(q > 0, q, 1.0))).sum(1)
    scores = np.exp(entropies / counts - marginal)
    return float(scores.mean()), float(scores.std())
