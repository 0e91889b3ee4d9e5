"""Statistics of real pictures, made here."""

import os
from collections.abc import Callable
from typing import NamedTuple

import fsspec

from emigm_jax.checkpoints import store
from emigm_jax.errors import UserError
from emigm_jax.evaluation import image_sets, measure, references, statistics
from emigm_jax.evaluation import inception as networks
from emigm_jax.evaluation.evaluator import Work
from emigm_jax.evaluation.image_sets import ImageSet
from emigm_jax.io import access, files, hub, npz, paths
from emigm_jax.nn.functional import fingerprint
from emigm_jax.parallel import agreement

KEPT_FEATURES = 50_000  # pictures of a folder up to which all features are kept, 8 kB each


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
    check_new(path)
    network = measure.Network(networks.opened(inception).params)
    return _made(path, images, network, _Words(source), keep_features, work or Work())


class _Words(NamedTuple):
    source: str
    seen: str = ''


def _made(path, images, network, words, keep_features, work):
    """The `Reference` of pictures, by way of the file `path`."""
    if len(images) < 2:
        raise UserError(f'{words.source}: a reference needs at least 2 images')
    names = ('fid', 'sfid', 'kid') if keep_features else ('fid', 'sfid')
    with work.bar(total=len(images)) as bar:
        measured = measured_anew(images, network, measure.Plan(names, work.batch_size), bar.update)

    def write():
        assert measured.totals is not None
        references.write(
            path,
            statistics.moments(measured.totals, 'pool'),
            source=f'{len(images)} images of {words.source}',
            count=len(images),
            spatial=statistics.moments(measured.totals, 'spatial'),
            features=measured.features,
            seen=words.seen,
        )

    agreement.by_first(write)
    return references.read(path)


def at_hand(
    reference: os.PathLike | str | references.Reference,
) -> os.PathLike | str | references.Reference:
    """What is in a file of statistics; a folder, whose statistics are to be made, as it is.

    Raises:
      UserError: there is no such file or folder, or it is no file of statistics.
    """
    if isinstance(reference, references.Reference) or paths.absolute(reference).is_dir():
        return reference
    return references.read(reference)


def opened(
    reference: os.PathLike | str | references.Reference,
    inception: networks.Extractor,
    side: Callable[[], int | None],
    work: Work | None = None,
) -> references.Reference:
    """Statistics as they are, of a file, or of all pictures below a folder.

    Those of a folder are made here and kept beside it, in FOLDER.fid-SIDE.npz, for as long as its
    pictures, the network and the size stay what they were. All processes call this.

    Args:
      reference: of real images.
      inception: the network.
      side: gives the pixels per side of centre crops of pictures, or None for pictures as they
        are; called for a folder only.
      work: batch size, progress and where to say what takes long; the rest is not heeded.

    Raises:
      UserError: the reference cannot be read, or the statistics of a folder not be kept.
    """
    reference = agreement.agreed(lambda: at_hand(reference))
    if isinstance(reference, references.Reference):
        return reference
    work, size = work or Work(), side()
    source = agreement.agreed(lambda: image_sets.Below(reference))
    root = paths.absolute(reference)
    place = root.parent / f'{root.name}.fid-{size or "uncropped"}.npz'
    seen = agreement.agreed(lambda: _seen(root, source, inception, size))
    if agreement.from_first(agreement.by_first(lambda: _holds(place, seen))):
        return agreement.agreed(lambda: references.read(place))
    agreement.by_first(lambda: _check_room(place, reference))
    work.say(f'statistics of the {len(source):,} pictures in {reference} -> {place}')
    name = f'{reference}, centre crops of {size}' if size else str(reference)
    images = image_sets.Pictures(source, reference, size)
    network = measure.Network(inception.params)
    return _made(place, images, network, _Words(name, seen), len(source) <= KEPT_FEATURES, work)


def _seen(root, source, inception, size):
    """Digest of names, sizes and times of the pictures, the network and the size of the crops."""
    facts = [f'{source.fingerprint()} {fingerprint(inception.params)} {size}']
    if files.remote(root):
        system, place = fsspec.core.url_to_fs(str(root))
        found = sorted(system.find(place, detail=True).items())
        facts += [f'{name} {about.get("mtime") or about.get("updated")}' for name, about in found]
    else:
        facts += [_time(root / source.name(i)) for i in range(len(source))]
    return files.text_hash(facts)


def _time(file):
    try:
        return str(os.stat(file).st_mtime_ns)
    except OSError:  # said when it is read
        return 'unknown'


def _holds(place, seen):
    """Whether the statistics at `place` are those of `seen`; UserError if they are not ours."""
    with access.reachable(place):
        if not place.exists():
            return False
        try:
            arrays = npz.members(place)
        except UserError:  # damaged, and made anew
            return False
    if 'seen' not in arrays:
        raise UserError(f'{place}: was not made here and would be replaced; move it elsewhere')
    return arrays['seen'].text() == seen


def _check_room(place, reference):
    try:
        hub.check_not_target(reference)
        access.probe(place)
    except UserError as error:
        raise UserError(
            f'{error}: the statistics of {reference} are kept there; make them elsewhere with '
            f'`emigm prepare reference FILE.npz --folder {reference} ...`, and name that file'
        ) from error


def check_new(path) -> None:
    """Raises UserError unless a new file can be written to `path`, local or gs://."""
    hub.check_not_target(path)
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
