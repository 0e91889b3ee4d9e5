"""How hard the devices of a run work."""

from typing import NamedTuple

import jax

from emigm_jax.parallel import peaks


class Work(NamedTuple):
    """What a step does."""

    images: int
    flops: float = 0.0  # of each device, matrix products by the formula, padding included
    peak: float | None = None  # FLOP/s of such a device, where it is known

    def speeds(self, seconds: float) -> dict[str, float]:
        """Of a step that takes so long: images/s of all, TFLOP/s of a device, MFU if known."""
        rate = self.flops / seconds
        speeds = {'images_per_second': self.images / seconds, 'tflops_per_device': rate / 1e12}
        return speeds if self.peak is None else {**speeds, 'mfu': rate / self.peak}


def work(images: int, flops: float, mesh: jax.sharding.Mesh, dtype: str) -> Work:
    """Of a step of so many images with so many FLOPs each, shared by the devices of a mesh."""
    device = mesh.devices.flat[0]
    return Work(images, images * flops / mesh.size, peaks.peak(device.device_kind, dtype))


def memory() -> dict[str, float]:
    """The most that was in use on the first device of this process, if it counts."""
    stats = jax.local_devices()[0].memory_stats() or {}
    most = stats.get('peak_bytes_in_use')
    return {} if most is None else {'memory_gb': most / 1e9}
