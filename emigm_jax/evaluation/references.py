"""Statistics of real images to compare with, in every layout that is in use.

ADM (guided-diffusion) VIRTUAL_*.npz   mu, sigma, mu_s, sigma_s, arr_0 (uint8 images)
MAR, eMIGM, pytorch-fid, clean-fid     mu, sigma
MeanFlow                               ref_mu, ref_sigma
EDM2, diffuse_nnx                      pickle of {'fid': {'mu', 'sigma'}}
torch-fidelity's cache                 .pt of {'mu', 'sigma'}
CelebA-HQ of several projects          .npy of a dict of mu, sigma
this library                           mu, sigma, mu_s, sigma_s, features, count, source,
                                       fingerprint, seen

Numbers may be of any float dtype and in any order; whatever else is in a file is not looked at.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Collection

import numpy as np

from emigm_jax.errors import UserError, printable
from emigm_jax.evaluation.inception_plan import SPATIAL_WIDTH
from emigm_jax.evaluation.inception_plan import WIDTH as POOL
from emigm_jax.io import npz
from emigm_jax.io.formats import torch_files

_RENAMED = {'ref_mu': 'mu', 'ref_sigma': 'sigma'}
_PAIRS = (('mu', 'sigma', POOL), ('mu_s', 'sigma_s', SPATIAL_WIDTH))
_EXPECTED = 'expected mu and sigma (or ref_mu and ref_sigma)'


@dataclasses.dataclass(frozen=True)
class Reference:
    """Statistics of real images; None where the file has none."""

    mean: np.ndarray  # (2048,) float64, of the pooled Inception features
    covariance: np.ndarray  # (2048, 2048) float64
    name: str  # where the statistics come from
    fingerprint: str  # of the numbers: equal for equal statistics, in whatever file
    spatial_mean: np.ndarray | None = None  # (2023,) float64, for sFID
    spatial_covariance: np.ndarray | None = None  # (2023, 2023) float64
    images: npz.Rows | None = None  # (M, H, W, 3) uint8, on disk, for precision and recall
    features: npz.Rows | None = None  # (M, 2048), on disk, for KID, precision and recall
    count: int | None = None  # images behind the mean


def read(path: os.PathLike | str) -> Reference:
    """The statistics in a file, local, gs:// or hf://.

    Raises:
      UserError: missing, damaged or of another kind; wrong shapes, numbers that are not finite, a
        covariance that is none; in one line that starts with the path.
    """
    if npz.is_npz(path):
        arrays = {_RENAMED.get(key, key): rows for key, rows in npz.members(path).items()}
    else:
        arrays = _pickled(path)
    if not is_reference(arrays):
        keys = ', '.join(ascii(key)[1:-1][:40] for key in list(arrays)[:8]) or 'nothing'
        raise UserError(
            f'{path}: holds no reference statistics but {keys}; {_EXPECTED}: take the '
            'statistics that ADM, MAR or MeanFlow publish'
        )

    statistics = []
    for mean, covariance, size in _PAIRS:
        if mean in arrays and covariance in arrays:
            statistics += _checked(path, mean, arrays[mean], covariance, arrays[covariance], size)
        else:
            statistics += [None, None]
    fingerprint = fingerprint_of(*statistics)
    rows = {name: x for name, x in arrays.items() if isinstance(x, npz.Rows)}
    ours = {'fingerprint', 'count', 'source'} <= rows.keys()
    if ours and rows['fingerprint'].text() != fingerprint:
        raise UserError(
            f'{path}: its numbers do not have its fingerprint: the file was changed '
            'or is damaged, fetch it again'
        )
    return Reference(
        mean=statistics[0],
        covariance=statistics[1],
        spatial_mean=statistics[2],
        spatial_covariance=statistics[3],
        images=_checked_images(path, rows.get('arr_0')),
        features=_checked_features(path, rows.get('features')),
        count=rows['count'].whole() if ours else None,
        name=printable(rows['source'].text()) if ours else pathlib.PurePath(str(path)).name,
        fingerprint=fingerprint,
    )


def is_reference(names: Collection[str]) -> bool:
    """Whether arrays of these names are statistics that `read` takes."""
    return {'mu', 'sigma'} <= {_RENAMED.get(name, name) for name in names}


def opened(reference: os.PathLike | str | Reference) -> Reference:
    """Statistics as they are, or what `read` makes of a file."""
    return reference if isinstance(reference, Reference) else read(reference)


def write(
    path: os.PathLike | str,
    moments: tuple[np.ndarray, np.ndarray],
    *,
    source: str,
    count: int,
    spatial: tuple[np.ndarray, np.ndarray] | None = None,
    features: np.ndarray | None = None,
    seen: str = '',
) -> None:
    """Writes statistics as an npz file (local or gs://) that `read` and other projects take.

    Args:
      path: ends in .npz.
      moments: mean (2048,) and covariance (2048, 2048).
      source: what the images were and how they were prepared, in a few words.
      count: how many there were.
      spatial: mean (2023,) and covariance (2023, 2023) for sFID.
      features: (M, 2048), of some or all of the images, for KID, precision and recall.
      seen: digest of all that decides the numbers, to know whether they still hold.

    Raises:
      UserError: a wrong shape, numbers that are not finite, or the place cannot be written.
    """
    arrays = dict(count=np.asarray(count), source=np.asarray(source), seen=np.asarray(seen))
    statistics = []
    for (mean, covariance, size), values in zip(_PAIRS, (moments, spatial), strict=True):
        if values is None:
            statistics += [None, None]
            continue
        pair = _checked(path, mean, np.asarray(values[0]), covariance, np.asarray(values[1]), size)
        arrays |= {mean: pair[0], covariance: pair[1]}
        statistics += pair
    if features is not None:
        _checked_features(path, features)
        arrays['features'] = np.asarray(features)
    npz.write(path, {**arrays, 'fingerprint': np.asarray(fingerprint_of(*statistics))})


def fingerprint_of(*statistics: np.ndarray | None) -> str:
    """16 hexadecimal digits from the float64 numbers of means and covariances (None: left out)."""
    digest = hashlib.sha256()
    for array in statistics:
        digest.update(b'' if array is None else np.ascontiguousarray(array, '<f8').tobytes())
    return digest.hexdigest()[:16]


def _pickled(path):
    """{name: array} of a pickle, a .pt or .npy file, through the reader that runs nothing."""
    tree = torch_files.read(path)
    if isinstance(tree, dict) and isinstance(tree.get('fid'), dict):
        tree = tree['fid']
    if not isinstance(tree, dict):
        raise UserError(f'{path}: holds a {type(tree).__name__}, no statistics; {_EXPECTED}')
    named = {str(key): value for key, value in tree.items()}
    return {_RENAMED.get(key, key): value for key, value in named.items()}


def _checked(path, mean_name, mean, covariance_name, covariance, size):
    """[mean, covariance] in float64, the covariance symmetric to the last bit."""
    arrays = []
    for name, array, shape in (
        (mean_name, mean, (size,)),
        (covariance_name, covariance, (size, size)),
    ):
        array = _of_shape(path, name, array, shape)
        if not np.isfinite(array).all():
            raise UserError(f'{path}: {name} holds NaN or infinity; compute or fetch it again')
        arrays.append(array.astype(np.float64))
    mean, covariance = arrays
    scale = np.abs(covariance).max()
    # Files in float32, or from a blocked product, are symmetric only to their rounding.
    if np.abs(covariance - covariance.T).max() > 1e-4 * scale:
        raise UserError(
            f'{path}: {covariance_name} is not symmetric, so it is no covariance; '
            'compute or fetch it again'
        )
    if np.diag(covariance).min() < -1e-6 * scale:
        raise UserError(
            f'{path}: {covariance_name} has a negative variance, so it is no '
            'covariance; compute or fetch it again'
        )
    return [mean, (covariance + covariance.T) / 2]


def _of_shape(path, name, array, shape):
    """The array in its shape, which is looked at before anything is read; some are saved as a
    batch of one."""
    form = f'a {type(array).__name__}'
    if isinstance(array, (np.ndarray, npz.Rows)):
        form = f'{array.dtype} {array.shape}'
        if array.dtype.kind == 'f' and tuple(n for n in array.shape if n != 1) == shape:
            return (array.read() if isinstance(array, npz.Rows) else array).reshape(shape)
    raise UserError(
        f'{path}: {name} must be real numbers of shape {shape}, not {form}: the statistics must be '
        "of FID's Inception features"
    )


def _checked_images(path, images):
    if images is not None and (
        images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[3] != 3
    ):
        raise UserError(
            f'{path}: arr_0 must be uint8 images (M, H, W, 3), not {images.dtype} {images.shape}'
        )
    return images


def _checked_features(path, features):
    if features is not None and (
        features.dtype.kind != 'f' or len(features.shape) != 2 or features.shape[1] != POOL
    ):
        raise UserError(
            f'{path}: features must be real numbers (M, {POOL}), not {features.dtype} '
            f'{features.shape}'
        )
    return features
