"""The table of metrics: what each is computed from, and which cannot be computed here, and why."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from emigm_jax.errors import UserError, check_choice
from emigm_jax.evaluation import fid, kid, scores, statistics
from emigm_jax.evaluation.references import Reference


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is known about generated and real images; None where it is not."""

    totals: statistics.Totals  # of `statistics.collect`
    reference: Reference
    features: np.ndarray | None = None  # (N, 2048) pooled features of the generated images
    real_features: np.ndarray | None = None  # (M, 2048) of real ones; None: the reference's own


def _fid(inputs):
    moments = statistics.moments(inputs.totals, 'pool')
    reference = inputs.reference.mean, inputs.reference.covariance
    return {'fid': scores.frechet_distance(*reference, *moments)}


def _spatial_fid(inputs):
    reference = inputs.reference.spatial_mean, inputs.reference.spatial_covariance
    if reference[0] is None:
        raise UserError('the reference has no mu_s and sigma_s, as those of ADM have')
    moments = statistics.moments(inputs.totals, 'spatial')
    return {'sfid': scores.frechet_distance(*reference, *moments)}


def _inception_score(inputs):
    return _pair('inception_score', statistics.score(inputs.totals))


def _kernel_distance(inputs):
    return _pair('kid', kid.kernel_distance(_kept(inputs), _real(inputs)))


def _precision_recall(inputs):
    precision, recall = scores.precision_recall(_real(inputs), _kept(inputs))
    return {'precision': precision, 'recall': recall}


def _infinite(inputs):
    reference = inputs.reference.mean, inputs.reference.covariance
    return {'fid_infinite': fid.infinite(_kept(inputs), *reference)}


def _standard_error(inputs):
    reference = inputs.reference.mean, inputs.reference.covariance
    return {'fid_standard_error': fid.standard_error(_kept(inputs), *reference)}


def _pair(name, values):
    return {name: values[0], f'{name}_std': values[1]}


def _kept(inputs):
    if inputs.features is None:
        raise UserError('the features of the generated images were not kept')
    return _finite('generated', inputs.features)


def _real(inputs):
    if inputs.real_features is not None:
        return _finite('real', inputs.real_features)
    if inputs.reference.features is None:
        raise UserError('the reference has no features of real images')
    return _finite('real', inputs.reference.features.read())


def _finite(what, features):
    if not np.isfinite(features).all():
        raise UserError(f'the features of {what} images are not finite')
    return features


# name: (how, whether it needs the features of every generated image and not only their sums)
METRICS: dict[str, tuple[Callable[[Inputs], dict[str, float]], bool]] = {
    'fid': (_fid, False),
    'sfid': (_spatial_fid, False),
    'inception_score': (_inception_score, False),
    'kid': (_kernel_distance, True),
    'precision_recall': (_precision_recall, True),
    'fid_infinite': (_infinite, True),
    'fid_standard_error': (_standard_error, True),
}


def check(names: Iterable[str]) -> None:
    """Raises UserError unless all `names` are metrics."""
    for name in names:
        check_choice('a metric', name, METRICS)


def compute(inputs: Inputs, names: Iterable[str]) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics that are asked for.

    Args:
      inputs: what they are computed from.
      names: of `METRICS`.

    Returns:
      {name: float} (inception_score and kid with NAME_std, precision_recall as precision and
      recall), and {name: reason in one line} of the metrics that cannot be computed.

    Raises:
      UserError: an unknown metric.
    """
    values, missing = {}, {}
    for name in names:
        check([name])
        how, _ = METRICS[name]
        try:
            values |= how(inputs)
        except UserError as error:
            missing[name] = str(error)
    return values, missing
