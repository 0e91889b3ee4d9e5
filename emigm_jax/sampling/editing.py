"""Images of which some tokens are given: inpainting, outpainting, another class, variations.

What is given is a prefix in generation order, so an edit is generation that begins there.
"""

import collections
import dataclasses
import numbers
from collections.abc import Iterator, Sequence
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8
from PIL import Image

from emigm_jax.core import edit_plans, orders, randomness
from emigm_jax.errors import UserError, check_choice, check_range, whole
from emigm_jax.io.progress import Bar
from emigm_jax.nn.functional import fingerprint
from emigm_jax.parallel import batches
from emigm_jax.sampling import edit_masks, originals
from emigm_jax.sampling.generator import Generator
from emigm_jax.sampling.originals import Picture
from emigm_jax.sampling.sampler import Integers, Progress, Sampler, sampler
from emigm_jax.sampling.steps import Given


@final
@dataclasses.dataclass(frozen=True)
class Edit:
    """M images to be made of pictures, beside their classes and seeds."""

    pictures: UInt8[np.ndarray, 'M S S colours']  # cropped
    given: Given
    weights: Float32[np.ndarray, 'M S S']  # of what is decoded; the rest is the picture's own

    def about(self) -> dict[str, str]:
        """JSON-like: what decides the images beside the model, classes and seeds."""
        arrays = {'pictures': self.pictures, 'masked': self.given.masked, 'weights': self.weights}
        return {'edit': fingerprint(arrays)}

    def described(self) -> str:
        """How much of the first is drawn, in words."""
        masked = np.asarray(self.given.masked[0])
        remark = _REMARKS.get(masked.mean(), '')
        return f'{masked.sum()} of {len(masked)} tokens are drawn anew{remark}'


# Share of the tokens that is drawn: what that means.
_REMARKS = {
    0.0: ': the images are what the tokens of the picture decode to',
    1.0: ', as `emigm sample` draws them',
}


@final
@dataclasses.dataclass(frozen=True)
class Blend:
    """How what is drawn is put into the picture; None: as the mask says."""

    mask: str | None = None  # a key of `edit_masks.BLENDS`
    grow: int | None = None  # tokens by which the mask grows on each side

    def __post_init__(self):
        if self.mask is not None:
            check_choice('blend', self.mask, edit_masks.BLENDS)
        if self.grow is not None:
            whole('grow', self.grow, low=0)


def prepare(
    make: Generator,
    images: Picture | Sequence[Picture],
    mask: Picture | Sequence[Picture] | float,
    labels: Integers,
    seeds: Integers,
    blend: Blend,
) -> tuple[Edit, np.ndarray, np.ndarray]:
    """The `Edit` of every picture with every pair of a label and a seed; their labels and seeds.

    Args:
      make: what draws.
      images: one or several, of any size.
      mask: white where they are drawn anew, one for all or one for each; or a number, the share of
        the tokens that is drawn anew, which each seed chooses.
      labels, seeds: pairs, M of them.
      blend: how both are put together.

    Raises:
      UserError: a picture or mask cannot be read, or does not fit.
    """
    grid, spec = make.sampler.model.grid, make.codec.spec
    side = grid * spec.stride
    opened = [originals.opened(each, 'a picture') for each in originals.several(images, 'picture')]
    pictures = np.stack([originals.cropped(each, side, spec.colours) for each in opened])
    of_each = lambda array: np.repeat(array, len(labels), axis=0)
    if isinstance(mask, numbers.Real):
        pixels, masked, how = _share(make, float(mask), len(opened), seeds, blend)
    else:
        sizes = [each.size for each in opened]
        pixels, masked, how = _painted(mask, sizes, side, grid, blend)
        pixels, masked = of_each(pixels), of_each(masked)
    tokens = np.asarray(make.codec.to_tokens(make.codec.encode(pictures)))
    edit = Edit(
        of_each(pictures),
        Given(of_each(tokens), masked.reshape(len(masked), -1)),
        edit_masks.weights(pixels, masked, how),
    )
    of_pairs = lambda values: np.tile(np.asarray(values), len(opened))
    return edit, of_pairs(labels), of_pairs(seeds)


def masked(
    make: Generator,
    image: Image.Image,
    mask: Picture | None = None,
    box: tuple[float, float, float, float] | None = None,
    margin: float | None = None,
    share: float | None = None,
) -> tuple[Picture, Picture | float, str]:
    """The picture and the mask of `prepare` by one of four ways to say it, and a line about them.

    Args:
      make: what draws.
      image: in mode RGB.
      mask: a picture.
      box: of `edit_masks.box`.
      margin: of each side, as a share of it; the picture is made smaller.
      share: of the tokens.

    Raises:
      UserError: one that makes no sense, or a mask that cannot be read.
    """
    side = make.sampler.model.grid * make.codec.spec.stride
    about = originals.described(image, side)
    if share is not None:
        return image, share, about
    if margin is not None:
        around = edit_masks.margin(side, margin)
        about = originals.described(image, side - 2 * around)
        return *originals.framed(image, side, around), f'{about}, within {side} x {side}'
    if box is not None:
        return image, edit_masks.box(side, box), about
    assert mask is not None  # or nothing was said
    white = originals.opened(mask, 'a mask')
    greys = f'; greys of the mask count as white from {originals.WHITE} on'
    return image, white, about + greys * originals.has_greys(white)


def _painted(mask, sizes, side, grid, blend):
    """Masks of pixels and of tokens of each picture, and how they are blended."""
    masks = [originals.opened(each, 'a mask') for each in originals.several(mask, 'mask')]
    if len(masks) not in (1, len(sizes)):
        raise UserError(
            f'there are {len(masks)} masks for {len(sizes)} pictures: one goes for all, or one each'
        )
    masks *= len(sizes) // len(masks)
    pairs = zip(masks, sizes, strict=True)
    pixels = np.stack([originals.as_mask(each, size, side, grid) for each, size in pairs])
    how = blend.mask or 'blurred'
    # A blurred edge reaches as far into what is drawn as a token that is drawn for it.
    grow = int(how == 'blurred' and edit_masks.blur(side) > 0) if blend.grow is None else blend.grow
    return pixels, edit_masks.to_tokens(pixels, grid, grow), how


@randomness.pinned()
def _share(make, share, count, seeds, blend):
    """As `_painted`, of tokens that seeds choose."""
    check_range('the share of tokens', share, 0.0, 1.0)
    if blend != Blend():
        raise UserError('blend and grow go with a mask, not with a share of the tokens')
    grid = make.sampler.model.grid
    key, tokens = randomness.key(make.sampler.config.seed), grid**2
    # `steps.Steps` folds other numbers into the key of an image.
    draw = lambda seed: orders.random(
        jax.random.fold_in(jax.random.fold_in(key, seed), 1 + 2 * tokens), tokens
    )
    rank = np.asarray(jax.vmap(draw)(jnp.asarray(seeds, jnp.uint32)))
    masked = np.tile((rank < round(share * tokens)).reshape(-1, grid, grid), (count, 1, 1))
    return edit_masks.to_pixels(masked, grid * make.codec.spec.stride), masked, 'none'


def parts(make: Generator, masked: Bool[np.ndarray, 'M N']) -> list[tuple[Sampler, np.ndarray]]:
    """Samplers and the rows that each of them draws; rows of which nothing is drawn are left out.

    Those of which all is drawn go to the generator's own, and so are what their seeds give.
    """
    rows, tokens = collections.defaultdict(list), masked.shape[1]
    for row, count in enumerate(masked.sum(1).tolist()):
        if count:
            rows[None if count == tokens else edit_plans.alike(count, tokens)].append(row)
    own = make.sampler
    of = lambda sizes: sizes and sampler(own.model, own.config, own.guide, sizes)
    return [(of(sizes) or own, np.array(each)) for sizes, each in rows.items()]


def _given(given, rows, draw, make):
    """What a sampler is told of rows."""
    return None if draw is make.sampler else Given(*(a[rows] for a in given))


def tokens(
    make: Generator, given: Given, labels: Integers, seeds: Integers
) -> Shaped[np.ndarray, 'M N *C']:
    """Tokens of any number M of images, in batches: those that are given, and others drawn."""
    labels, seeds, drawn = np.asarray(labels), np.asarray(seeds), np.array(given.tokens)
    size = min(make.batch_size, len(labels))
    work = [
        (draw, rows[start : start + size])
        for draw, rows in parts(make, np.asarray(given.masked))
        for start in range(0, len(rows), size)
    ]
    for draw, rows in Bar(work, unit=' batches', desc='editing'):
        # Few sizes, so that few are compiled, and of a large batch no small part fills the whole.
        full = batches.fill(rows, min(size, 1 << (len(rows) - 1).bit_length()))
        told = _given(given, full, draw, make)
        drawn[rows] = np.asarray(draw(make.params, labels[full], seeds[full], told))[: len(rows)]
    return drawn


def images(
    make: Generator, edit: Edit, labels: Integers, seeds: Integers
) -> UInt8[np.ndarray, 'M S S colours']:
    """The images of an `Edit`."""
    drawn = tokens(make, edit.given, labels, seeds)
    size = min(make.batch_size, len(drawn))
    decoded = [
        make.codec.decode(batches.fill(drawn[start : start + size], size))
        for start in range(0, len(drawn), size)
    ]
    decoded = np.concatenate(decoded)[: len(drawn)]
    return edit_masks.blended(edit.pictures, decoded, edit.weights)


def steps(
    make: Generator, edit: Edit, labels: Integers, seeds: Integers
) -> Iterator[tuple[UInt8[np.ndarray, 'M S S colours'], Progress]]:
    """As `images`, but yields (images, `Progress`) after every step, the last of which is whole.

    Images of which very different numbers of tokens are drawn take turns. Where nothing is drawn
    there is one step.
    """
    labels, seeds, masked = np.asarray(labels), np.asarray(seeds), np.asarray(edit.given.masked)
    drawn, revealed = np.array(edit.given.tokens), ~masked
    drawn[masked] = 0
    shown = lambda: (
        edit_masks.blended(edit.pictures, make.codec.decode(drawn), edit.weights),
        Progress(drawn.copy(), revealed.copy()),
    )
    for draw, rows in parts(make, masked):
        told = _given(edit.given, rows, draw, make)
        for progress in draw.steps(make.params, labels[rows], seeds[rows], told):
            drawn[rows], revealed[rows] = map(np.asarray, progress)
            yield shown()
    if not masked.any():
        yield shown()


def nfe(make: Generator, edit: Edit) -> int:
    """Transformer evaluations of an image, at most."""
    return max((draw.nfe for draw, _ in parts(make, np.asarray(edit.given.masked))), default=0)


def count_steps(make: Generator, edit: Edit) -> int:
    """How often `steps` yields."""
    samplers = [draw for draw, _ in parts(make, np.asarray(edit.given.masked))]
    return max(1, sum(len(s.steps) for draw in samplers for s in draw.segments))
