"""The kernels for NVIDIA GPUs, compiled for one that is not there."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from emigm_jax.nn.kernels import tiles

# What XLA has to know of an H100; the figures are NVIDIA's.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  device_memory_size: 84942979072
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec('jax_cuda12_plugin') is None,
        reason='wants jax-cuda12-plugin and -pjrt of the version of jax, and nvidia-cuda-nvcc-cu12',
    ),
]


@pytest.mark.parametrize(('rows', 'size'), [(320, 64), (70, 56), (320, 80)])
def test_attention(rows, size):
    """B and L, XS, H; tiles that are full and that are not."""
    topology = topologies.get_topology_desc(
        platform='cuda', topology_name='h100', topology='1x1x1', target_config=H100
    )
    there = jax.sharding.SingleDeviceSharding(topology.devices[0])
    shape = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=there)
    q, gradient = [shape(jnp.bfloat16, 2, rows, 4 * size)] * 2
    k, v = [shape(jnp.bfloat16, 2, 320, 4 * size)] * 2
    args = q, k, v, shape(jnp.int32, 2, 1, 1), shape(jnp.uint32, 2, 4, 2, 1)
    plan = tiles.Plan(size, 0.1)

    def both(gradient, *args):
        out, kept = tiles.forward(plan, *args)
        return out, tiles.backward(plan, args, kept, gradient)

    program = jax.jit(both).lower(gradient, *args).compile()
    assert str(program.as_text()).count('custom_call_target="__gpu$xla.gpu.triton"') == 3
