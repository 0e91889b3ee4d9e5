"""Statistics of real pictures, made here."""

import os

from emigm_jax.checkpoints import store
from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception as networks
from emigm_jax.evaluation import measure, references, statistics
from emigm_jax.evaluation.evaluator import Work
from emigm_jax.evaluation.image_sets import ImageSet
from emigm_jax.io import access, paths
from emigm_jax.parallel import agreement


def make_reference(
    path: os.PathLike | str,
    images: ImageSet,
    *,
    inception: os.PathLike | str | networks.Extractor,
    source: str,
    keep_features: bool = False,
    work: Work | None = None,
) -> references.Reference:
    """Writes the Inception statistics of pictures, to compare others with (FID and sFID).

        images = image_sets.folder('imagenet/val', image_size=256)
        make_reference('real.npz', images, inception='fid-inception', source='ImageNet val')

    Args:
      path: of the new file, local or gs://, ending in .npz.
      images: at least 2.
      inception: checkpoint of the network, or what is in it.
      source: what the images are and how they were prepared, in a few words.
      keep_features: also (N, 2048) float32 of all images, for precision, recall and KID.
      work: batch size and progress; the rest is not heeded.

    Raises:
      UserError: the file exists or cannot be written, or the images cannot be read.
    """
    work = work or Work()
    check_new(path)
    if len(images) < 2:
        raise UserError(f'{source}: a reference needs at least 2 images')
    network = measure.Network(networks.opened(inception).params)
    names = ('fid', 'sfid', 'kid') if keep_features else ('fid', 'sfid')
    with work.bar(total=len(images)) as bar:
        measured = measured_anew(images, network, measure.Plan(names, work.batch_size), bar.update)

    def write():
        assert measured.totals is not None
        references.write(
            path,
            statistics.moments(measured.totals, 'pool'),
            source=f'{len(images)} images of {source}',
            count=len(images),
            spatial=statistics.moments(measured.totals, 'spatial'),
            features=measured.features,
        )

    agreement.by_first(write)
    return references.read(path)


def check_new(path) -> None:
    """Raises UserError unless a new file can be written to `path`, local or gs://."""
    if paths.absolute(path).exists():
        raise UserError(store.taken(path))
    access.probe(paths.absolute(path).parent)


def measured_anew(
    images: ImageSet,
    network: measure.Network,
    plan: measure.Plan,
    progress: measure.Progress = measure.silent,
) -> measure.Measured:
    """`measure.once` of images whose features nothing is known of."""
    shifts = agreement.agreed(lambda: measure.pilot(images, network, plan.batch))
    return measure.once(images, network, shifts, plan, progress)
