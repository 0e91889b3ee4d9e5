"""The metrics of two sets of images against the package torch-fidelity 0.4.0 itself."""

import functools
import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest

from emigm_jax.conversion import convert
from emigm_jax.evaluation import image_sets, kid, measure, metrics, references
from emigm_jax.evaluation import statistics as sums
from support import golden

pytestmark = pytest.mark.full  # Inception twice over 200 images

COUNT, SIDE, BATCH = 100, 48, 20
GAIN = 2.0  # of the formula's weights
SUBSET = 50  # images of KID's subsets: there are too few for 1000


@pytest.fixture(scope='module')
def theirs():
    """Modules of torch_fidelity by name. The package's own __init__ needs torchvision, and so do
    the parts that read data sets and cache features, of which the metrics use nothing here."""
    pytest.importorskip('torch')
    spec = importlib.util.find_spec('torch_fidelity')
    if spec is None:
        pytest.skip('torch-fidelity is not installed')
    package = types.ModuleType('torch_fidelity')
    package.__path__ = list(spec.submodule_search_locations)
    plumbing = types.ModuleType('torch_fidelity.utils')
    plumbing.__getattr__ = lambda name: None
    before = {k: v for k, v in sys.modules.items() if k.startswith('torch_fidelity')}
    sys.modules.update({'torch_fidelity': package, 'torch_fidelity.utils': plumbing})
    names = (
        'feature_extractor_inceptionv3',
        'metric_fid',
        'metric_isc',
        'metric_kid',
        'metric_prc',
        'version',
    )
    yield {name: importlib.import_module(f'torch_fidelity.{name}') for name in names}
    for name in [k for k in sys.modules if k.startswith('torch_fidelity')]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A file of PyTorch of the formula's weights, from which both read."""
    torch = pytest.importorskip('torch')
    made = golden.formula().state_dict(golden.path('inception_fid_keys.json'), GAIN)
    path = tmp_path_factory.mktemp('weights') / 'weights-inception-2015-12-05-6726825d.pth'
    torch.save({name: torch.from_numpy(value) for name, value in made.items()}, path)
    return path


@pytest.fixture(scope='module')
def images():
    """(generated, real): two sets that overlap in part, so that no metric is trivial."""
    picture = golden.formula().image
    real = picture('real', (COUNT, 3, SIDE, SIDE))
    made = picture('made', (COUNT, 3, SIDE, SIDE))
    dim = np.linspace(0.75, 1.05, COUNT, dtype=np.float32)[:, None, None, None]
    to_bytes = lambda x: np.round((np.clip(x, -1, 1) + 1) / 2 * 255).astype(np.uint8)
    return [to_bytes(x).transpose(0, 2, 3, 1) for x in (made * dim + 0.02, real)]


@pytest.fixture(scope='module')
def expected(theirs, weights, images):
    """What the package says of the images."""
    import torch

    network = theirs['feature_extractor_inceptionv3'].FeatureExtractorInceptionV3(
        'inception-v3-compat', ['2048', 'logits_unbiased'], feature_extractor_weights_path=weights
    )
    features = []
    for kind in images:
        found = []
        with torch.no_grad():
            for start in range(0, COUNT, BATCH):
                batch = np.ascontiguousarray(kind[start : start + BATCH].transpose(0, 3, 1, 2))
                found.append(network(torch.from_numpy(batch)))
        features.append([torch.cat(part) for part in zip(*found, strict=True)])
    (made, logits), (real, _) = features
    fid = theirs['metric_fid']
    statistics = [fid.fid_features_to_statistics(x) for x in (made, real)]
    return {
        **fid.fid_statistics_to_metric(*statistics, verbose=False),
        **theirs['metric_isc'].isc_features_to_metric(logits),
        # The first input is what was generated, since 0.4.
        **theirs['metric_kid'].kid_features_to_metric(
            made, real, kid_subset_size=SUBSET, verbose=False
        ),
        **theirs['metric_prc'].prc_features_to_metric(made, real, verbose=False),
        'version': theirs['version'].__version__,
    }


@pytest.fixture(scope='module')
def ours(weights, images, tmp_path_factory):
    """The same by the way of `emigm prepare reference` and `emigm evaluate`."""
    folder = tmp_path_factory.mktemp('ours')
    made, real = folder / 'made.npz', folder / 'real.npz'
    for path, kind in zip((made, real), images, strict=True):
        np.savez(path, arr_0=kind)
    network = measure.Network(convert.read(weights).params)
    names = ('fid', 'inception_score', 'kid', 'precision_recall')
    plan = measure.Plan(names, batch=BATCH, part=2 * BATCH)
    stored = image_sets.stored(real)
    found = measure.once(stored, network, measure.pilot(stored, network, BATCH), plan)
    references.write(
        folder / 'reference.npz',
        sums.moments(found.totals),
        source='real',
        count=COUNT,
        features=found.features,
    )
    reference = references.read(folder / 'reference.npz')
    shifts = {'pool': reference.mean}
    found = measure.totals(image_sets.stored(made), folder / 'out', {}, network, shifts, plan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kid, 'kernel_distance', functools.partial(kid.kernel_distance, size=SUBSET))
        values, missing = metrics.compute(
            metrics.Inputs(found.totals, reference, found.features), names
        )
    assert not missing
    return values


# ours: (theirs, tolerance relative to their value)
NAMES = {
    'fid': ('frechet_inception_distance', 2e-5),
    'inception_score': ('inception_score_mean', 1e-6),
    'inception_score_std': ('inception_score_std', 1e-6),
    'kid': ('kernel_inception_distance_mean', 2e-5),
    'kid_std': ('kernel_inception_distance_std', 2e-5),
    'precision': ('precision', 1e-6),
    'recall': ('recall', 1e-6),
}
# A spread of some thousandths of the score is as exact as the scores whose difference it is.
OF = {'inception_score_std': 'inception_score_mean'}


@pytest.mark.parametrize('name', NAMES)
def test_metric(name, ours, expected):
    their_name, tolerance = NAMES[name]
    assert expected['version'].startswith('0.4.0')
    allowed = tolerance * expected[OF.get(name, their_name)]
    assert ours[name] == pytest.approx(expected[their_name], rel=0, abs=allowed)


def test_the_sets_would_tell(expected):
    """No metric above is 0, 1 or the same for all images."""
    assert expected['frechet_inception_distance'] > 0.1
    assert expected['inception_score_mean'] > 1.01
    assert expected['kernel_inception_distance_mean'] > 1e-3
    assert 0.05 < expected['precision'] < 0.95
    assert 0.05 < expected['recall'] < 0.95
