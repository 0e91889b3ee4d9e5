"""The published tokenizers with few and narrow layers: they compile in seconds."""

import functools

import jax

from emigm_jax.tokenizers import dc_ae, kl_vae, vqgan
from emigm_jax.tokenizers.codec import Codec
from emigm_jax.tokenizers.learned import Learned

SMALL = {
    'kl16': kl_vae.KLVAEConfig(
        channels=16, width=8, multipliers=(1, 2), attention_levels=(1,), groups=4
    ),
    'dc_ae': dc_ae.DCAEConfig(
        channels=8,
        widths=(16, 32, 32),
        encoder_depths=(1, 1, 1),
        decoder_depths=(1, 1, 1),
        head_width=8,
    ),
    'vqgan': vqgan.VQGANConfig(codes=16, channels=8, width=8, multipliers=(1, 2), groups=4),
}


def small(name, batch=16):
    tokenizer = Learned(name, SMALL[name])
    return Codec(tokenizer, _params(tokenizer), batch)


@functools.cache
def _params(tokenizer):
    return jax.jit(tokenizer.network.init)(jax.random.key(0))
