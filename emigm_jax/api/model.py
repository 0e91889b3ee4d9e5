"""A model to make pictures with: `load` it once, `sample` as often as you like."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Unpack, final

import numpy as np

from emigm_jax.checkpoints import runs
from emigm_jax.config.options import EditOptions, SamplingOptions, changed
from emigm_jax.config.settings import Config, SamplingConfig
from emigm_jax.core import randomness
from emigm_jax.data import class_names
from emigm_jax.errors import UserError, whole
from emigm_jax.sampling import edit_masks, editing, generator
from emigm_jax.sampling.editing import Blend
from emigm_jax.sampling.generator import Generator
from emigm_jax.sampling.originals import Picture
from emigm_jax.sampling.steps import Progress
from emigm_jax.tokenizers import codec
from emigm_jax.tokenizers.codec import Codec

# What papers on ImageNet show: golden retriever, otter, red panda, geyser, macaw, valley, balloon,
# arctic fox.
_SHOWN = (207, 360, 387, 974, 88, 979, 417, 279)
_FEW, _SOME = 20, 8  # classes: all of a few are shown, some of many


class Step(NamedTuple):
    """Images while their tokens are revealed."""

    number: int  # from 1
    steps: int  # in all
    images: np.ndarray  # uint8 (B, H, W, 3), grey where nothing is revealed yet
    revealed: np.ndarray  # bool (B, grid, grid)


@final
class Model:
    """A trained model; made by `load`.

    Attributes:
      saved: what its checkpoint says about itself.
      generator: draws tokens with the checkpoint's own settings.
      opened_by: flags of commands that open the same model, and what they are set to.
    """

    def __init__(
        self, saved: runs.Saved, generator: Generator, opened_by: Mapping[str, str] | None = None
    ):
        self.saved, self.generator = saved, generator
        self.opened_by = dict(opened_by or {'checkpoint': str(saved.path)})

    @property
    def config(self) -> Config:
        """The settings it was trained with."""
        return self.saved.config

    @property
    def classes(self) -> int:
        """Classes that it knows: labels 0 to classes - 1."""
        return self.config.model.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the labels, of the data or of ImageNet; () if there are none."""
        return class_names.known(self.classes, self.saved.class_names)

    def sampling(
        self, preset: str | None = None, **options: Unpack[SamplingOptions]
    ) -> SamplingConfig:
        """The settings of `sample` with these arguments.

        Raises:
          UserError: no such preset, or an option that makes no sense.
        """
        has_guide = self.generator.sampler.guide is not None
        return changed(self.saved.sampling(preset), options, self.config, has_guide)

    def with_sampling(self, config: SamplingConfig) -> Generator:
        """What draws images with these settings, compiled once; the last few are kept."""
        return self.generator.with_sampling(config)

    def sample(
        self,
        classes: Iterable[int | str | None] | str | None = None,
        seeds: Iterable[int] = range(8),
        preset: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> np.ndarray:
        """Images of every class with every seed, class by class.

        The image of a class and a seed is the same in any batch, on any devices.

        Args:
          classes: labels, names of `class_names` ('golden retriever'), None for the null class;
            'all'; or None: all of a few, some of many. One that is given twice comes twice.
          seeds: image numbers, 0 to 2^32 - 1; likewise.
          preset: published settings, 'fast' or 'best', or those of `tune`; None: the checkpoint's
            own.
          **options: settings to change: steps, guidance, interval=(low, high), solver_steps ...;
            `config.options.OPTIONS` lists them with their meanings.

        Returns:
          uint8 (classes * seeds, H, W, 3).

        Raises:
          UserError: an unknown class, seed, preset or option.

        Example:
          >>> images = model.sample(classes=[3, 7], seeds=range(4), guidance=2.0)
          >>> images.shape
          (8, 8, 8, 3)
        """
        labels, numbers = self.pairs(classes, seeds)
        make = self.with_sampling(self.sampling(preset, **options))
        return _colours(make.images(labels, numbers))

    def sample_steps(
        self,
        classes: Iterable[int | str | None] | str | None = None,
        seeds: Iterable[int] = range(8),
        preset: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Step]:
        """As `sample`, but yields a `Step` whenever tokens have been revealed; the last is whole.

        All images are drawn at the same time, so ask for few.

        Example:
          >>> for step in model.sample_steps(classes=[3], seeds=[0]):
          ...     print(step.number, int(step.revealed.sum()))
        """
        labels, numbers = self.pairs(classes, seeds)
        make = self.with_sampling(self.sampling(preset, **options))
        steps = sum(len(s.steps) for s in make.sampler.segments)
        return stepped(self.config.model.grid, steps, make.steps(labels, numbers))

    def edit(
        self,
        images: Picture | Sequence[Picture],
        mask: Picture | Sequence[Picture] | float,
        classes: Iterable[int | str | None] | str | None,
        seeds: Iterable[int] = range(8),
        preset: str | None = None,
        **options: Unpack[EditOptions],
    ) -> np.ndarray:
        """Every picture with what is masked drawn anew, for every class and seed, in this order.

        The tokens beside the mask stay as they are, bit for bit. Without any mask an image is what
        its tokens decode to, with all masked that of `sample`.

        Args:
          images: one or a list: files of any size and format, PIL images, or uint8 arrays (H, W),
            (H, W, 3), (M, H, W, 3). They are cropped as in training.
          mask: white (True; greys from 128 on) where something else is to come: of the size of its
            picture, of the model's images, or of the grid of tokens; one for all or one for each.
            Or a number, the share of the tokens that is drawn anew, which each seed chooses.
          classes, seeds, preset, **options: as in `sample`; and blend: 'blurred', the picture's own
            pixels beside the mask with a soft edge (MaskGIT's, the default), 'exact', them as they
            are, 'none', what their tokens decode to; and grow: tokens by which the mask grows on
            each side (1 where its edge is blurred, else 0).

        Returns:
          uint8 (pictures * classes * seeds, H, W, 3).

        Raises:
          UserError: a picture or mask that cannot be read or does not fit, and as `sample`.

        Example:
          >>> digits = model.sample(classes=[3], seeds=range(2))
          >>> left = np.tile(np.arange(8) < 4, (8, 1))
          >>> model.edit(digits, left, classes=[3, 8], seeds=[0]).shape
          (4, 8, 8, 3)
        """
        work = self._editing(images, mask, classes, seeds, preset, options)
        return _colours(editing.images(*work))

    def edit_steps(
        self,
        images: Picture | Sequence[Picture],
        mask: Picture | Sequence[Picture] | float,
        classes: Iterable[int | str | None] | str | None,
        seeds: Iterable[int] = range(8),
        preset: str | None = None,
        **options: Unpack[EditOptions],
    ) -> Iterator[Step]:
        """As `edit`, but yields a `Step` whenever tokens have been revealed; the last is whole.

        Example:
          >>> digit = model.sample(classes=[3], seeds=[0])
          >>> for step in model.edit_steps(digit, 0.5, classes=[3], seeds=[0]):
          ...     print(step.number, int(step.revealed.sum()))
        """
        make, edit, *pairs = self._editing(images, mask, classes, seeds, preset, options)
        steps = editing.count_steps(make, edit)
        return stepped(self.config.model.grid, steps, editing.steps(make, edit, *pairs))

    def _editing(self, images, mask, classes, seeds, preset, options):
        """What `editing.images` and `editing.steps` take."""
        blend = Blend(options.pop('blend', None), options.pop('grow', None))
        make = self.with_sampling(self.sampling(preset, **options))
        edit, labels, numbers = editing.prepare(
            make, images, mask, *self.pairs(classes, seeds), blend
        )
        return make, edit, labels, numbers

    def pairs(
        self, classes: Iterable[int | str | None] | str | None, seeds: Iterable[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels (M,) (-1: null class) and seeds (M,) of every class with every seed."""
        labels, numbers = self.labels(classes), [_seed(seed) for seed in _listed('seeds', seeds)]
        if not labels or not numbers:
            raise UserError('there is nothing to draw: name at least one class and one seed')
        return np.repeat(labels, len(numbers)), np.tile(numbers, len(labels))

    def labels(self, classes: Iterable[int | str | None] | str | None) -> list[int]:
        """Labels of classes as `sample` takes them; -1 is the null class."""
        if classes is None:
            if self.classes == class_names.IMAGENET:
                return list(_SHOWN)
            return list(range(self.classes if self.classes <= _FEW else _SOME))
        if isinstance(classes, str):
            if classes != 'all':
                raise UserError(f"classes must be a list or 'all', not {classes!r}")
            return list(range(self.classes))
        return [self._label(name) for name in _listed('classes', classes)]

    def _label(self, name):
        if name is None:
            if not self.config.loss.label_drop:
                raise UserError(
                    'this model has no null class: it is trained with loss.label_drop = 0'
                )
            return -1
        if isinstance(name, str):
            return class_names.label(name, self.classes, self.saved.class_names)
        label = whole('a class', name)
        if not 0 <= label < self.classes:
            raise UserError(
                f'there is no class {label}, the model knows 0 to {self.classes - 1} '
                '(None is the null class)'
            )
        return label


def stepped(grid: int, steps: int, made: Iterable[tuple[np.ndarray, Progress]]) -> Iterator[Step]:
    """Each `Step` of what the steps of a generator or an edit yield."""
    for number, (images, progress) in enumerate(made, 1):
        revealed = np.asarray(progress.revealed).reshape(-1, grid, grid)
        shown = edit_masks.to_pixels(revealed, images.shape[1])[..., None]
        yield Step(number, steps, _colours(np.where(shown, images, np.uint8(128))), revealed)


def load(
    path: os.PathLike | str,
    *,
    tokenizer: os.PathLike | str | Codec | None = None,
    weights: str = '',
    dtype: str | None = None,
    batch_size: int = 64,
    guide: os.PathLike | str | None = None,
) -> Model:
    """Loads a checkpoint, local or gs://: a run's workdir, one of its steps, a converted model.

    Args:
      path: where it lies.
      tokenizer: checkpoint of what turns tokens into pictures (KL-16, DC-AE, VQGAN); None: that of
        the training data.
      weights: an EMA decay, 'params', or '' for the first EMA.
      dtype: of matrix products, 'float32' or 'bfloat16'; None: as saved.
      batch_size: images at a time, on all devices of this process.
      guide: checkpoint of a weaker model of the same tokens, as an earlier step of the same run:
        guidance leads away from it in place of the null class (autoguidance, arXiv 2406.02507).

    Raises:
      UserError: there is no model, it is damaged, or the tokenizer or the guide does not fit.

    Example:
      >>> import emigm_jax as em
      >>> model = em.load('runs/digits')
    """
    batch_size = whole('batch_size', batch_size, low=1)
    saved = runs.require(path)
    # A codec knows no path.
    named = 'TOKENIZER' if isinstance(tokenizer, Codec) else tokenizer
    by = dict(checkpoint=path, tokenizer=named, weights=weights, dtype=dtype, guide=guide)
    if tokenizer is not None and not isinstance(tokenizer, Codec):
        tokenizer = codec.load(tokenizer, dtype)
    weaker = None if guide is None else runs.require(guide)
    model = opened(saved, tokenizer, weights, dtype, batch_size, weaker)
    opened_by = {name: os.fspath(value) for name, value in by.items() if value}
    return Model(saved, model.generator, opened_by)


def opened(
    saved: runs.Saved,
    tokenizer: Codec | None = None,
    weights: str = '',
    dtype: str | None = None,
    batch_size: int = 64,
    guide: runs.Saved | None = None,
) -> Model:
    """As `load`, of checkpoints whose descriptions were read."""
    own = saved.config.sampling
    make = generator.from_checkpoint(saved, own, weights, batch_size, tokenizer, dtype, guide)
    return Model(saved, make)


def _listed(what, values):
    try:
        return list(values)
    except TypeError:
        raise UserError(f'{what} must be a list, not {values!r}') from None


def _seed(value):
    seed = whole('a seed', value)
    if not 0 <= seed <= randomness.LAST_SEED:
        raise UserError(f'seeds lie between 0 and {randomness.LAST_SEED}, {seed} does not')
    return seed


def _colours(images):
    """(B, H, W, 1 or 3) with grey as three equal colours."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
