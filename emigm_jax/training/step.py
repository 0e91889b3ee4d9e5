"""One training step as a pure function: draw, accumulate gradients, update, average."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, UInt32

from emigm_jax.config.settings import LossConfig, OptimizerConfig
from emigm_jax.core import flops, masking, randomness
from emigm_jax.data.interface import Batch
from emigm_jax.models.emigm import ModelConfig
from emigm_jax.nn.functional import Functional
from emigm_jax.parallel import sharding, shards
from emigm_jax.training import loss as losses
from emigm_jax.training import state as states
from emigm_jax.training.state import State


@final
@dataclasses.dataclass(frozen=True)
class TrainStep:
    """Advances the train state by one batch; a pure function with its settings."""

    net: Functional
    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    tx: optax.GradientTransformation
    accumulate: int = 1  # microbatches that a batch is processed in

    def groups(self, images: int) -> int:
        """Groups that a microbatch of a batch is divided into; `accumulate` divides the batch."""
        return masking.group_count(self.loss.masking, images // self.accumulate)

    def budgets(self, images: int) -> tuple[masking.Budget, ...]:
        """Static sizes of each group of a batch."""
        return masking.budgets(self.loss.masking, self.model.tokens, self.groups(images))

    def flops(self, images: int) -> float:
        """Matrix-product FLOPs per image, forward and backward, padding included."""
        forward = flops.train_image(self.model, self.budgets(images), self.loss.copies)
        return 3 * forward  # a product has two gradients

    def __call__(
        self,
        state: State,
        batch: Batch,
        words: UInt32[Array | np.ndarray, '2'],
        number: Int[Array, ''] | None = None,
    ) -> tuple[State, dict[str, Array]]:
        """One step.

        Args:
          state: {step, params, opt, ema}.
          batch: B images.
          words: `randomness.words` of the seed of training; the step's key is fold_in(seed, step).
          number: the step that the caller believes this is. If the state lags behind, an
            earlier step was not finite and this one changes nothing either.

        Returns:
          (state, metrics); with a non-finite loss or gradient the state comes back unchanged and
          metrics['finite'] is False.
        """
        images, accumulate = len(batch.tokens), self.accumulate
        groups, budgets = self.groups(images), self.budgets(images)
        key = jax.random.fold_in(randomness.of_data(jnp.asarray(words)), state['step'])
        draw_key, dropout_key = jax.random.split(key)
        draws = losses.draw(self.model, self.loss, draw_key, images, groups)

        # Rows (r, a, g): microbatch a takes r and g, so an image's group is j % G in all of them.
        dealt = lambda a: jnp.moveaxis(a.reshape(-1, accumulate, groups, *a.shape[1:]), 1, 0)
        micro = lambda a: dealt(a).reshape(accumulate, images // accumulate, *a.shape[1:])
        parts = jax.tree.map(micro, (batch.tokens, batch.labels, draws))
        if accumulate > 1:
            parts = jax.tree.map(
                lambda a: sharding.constrain(a, None, 'batch', *[None] * (a.ndim - 2)), parts
            )

        def part_loss(params, part, key):
            tokens, labels, draws = part
            params = sharding.gathered_for_use(params, self.model.compute_dtype, but='blocks')
            return losses.loss(
                self.net.bind(params), self.loss, budgets, tokens, labels, draws, key
            )

        gradient = jax.grad(part_loss, has_aux=True)
        if accumulate == 1:
            part = jax.tree.map(lambda a: a[0], parts)
            grads, terms = gradient(state['params'], part, jax.random.fold_in(dropout_key, 0))
        else:
            grads, terms = _over_devices(gradient, state['params'], parts, dropout_key)
        terms = terms._replace(mask_ratio=terms.mask_ratio / accumulate)

        norm = optax.tree.norm(grads)
        with jax.numpy_dtype_promotion('standard'):  # optax raises floats to integer counts
            updates, opt = self.tx.update(grads, state['opt'], state['params'])
        params = optax.apply_updates(state['params'], updates)
        new = {
            'step': state['step'] + 1,
            'params': params,
            'opt': opt,
            'ema': states.averaged(state['ema'], params, self.optimizer, state['step']),
        }
        finite = jnp.isfinite(terms.loss) & jnp.isfinite(norm)
        if number is not None:
            finite &= state['step'] == number
        state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        metrics = {'loss': terms.loss, **terms.parts, 'mask_ratio': terms.mask_ratio}
        return state, {**metrics, 'gradient_norm': norm, 'finite': finite}


def _over_devices(gradient, params, parts, key):
    """The sums of `gradient` over microbatches, and over devices once per step where they can wait.

    Over fsdp and tensor they cannot: whole gradients of every microbatch would have to be kept on
    each device, which such a mesh is there to avoid. They are scattered as they come.
    """
    if not shards.of_batches_alone():
        return _accumulated(gradient, params, parts, key)

    def here(params, parts, key):
        sums, terms = _accumulated(gradient, params, parts, shards.key_of_rows(key))
        sums, terms = shards.summed((sums, terms), shards.BATCH)
        # A mean over the images of a microbatch, of which each device has a share.
        share = terms.mask_ratio / jax.lax.axis_size(sharding.BATCH)
        return sums, terms._replace(mask_ratio=share)

    rows = jax.sharding.PartitionSpec(None, sharding.BATCH)
    whole = shards.REPLICATED
    return shards.mapped(here, (whole, rows, whole), whole)(params, parts, key)


def _accumulated(gradient, params, parts, key):
    def add(total, part_index):
        part, index = part_index
        found = gradient(params, part, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, found), None

    first = jax.tree.map(lambda a: a[0], parts)
    shapes = jax.eval_shape(gradient, params, first, key)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    count = len(jax.tree.leaves(parts)[0])
    return jax.lax.scan(add, zero, (parts, jnp.arange(count)))[0]
