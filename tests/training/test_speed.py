"""How hard devices work: their peaks by name, FLOP/s and MFU of a run, what is said of them."""

import json

import jax
import pytest

from emigm_jax.aot import chips
from emigm_jax.config import load
from emigm_jax.parallel import peaks, sharding
from emigm_jax.training import program, speed
from emigm_jax.training.metrics import Metrics
from emigm_jax.training.speed import Work


@pytest.mark.parametrize(
    ('kind', 'bfloat16', 'float32'),
    [  # as devices call themselves
        ('TPU v4', 275, 275),
        ('TPU v5 lite', 197, 197),
        ('TPU v5e', 197, 197),
        ('TPU v5p', 459, 459),
        ('TPU v5', 459, 459),
        ('TPU v6 lite', 918, 918),
        ('TPU v6e', 918, 918),
        ('TPU7x', 1153.5, 1153.5),
        ('NVIDIA H100 80GB HBM3', 989, 494.5),
        ('NVIDIA H100 PCIe', 756, 378),
        ('NVIDIA H100 NVL', 835.5, 417.5),
        ('NVIDIA H200', 989, 494.5),
        ('NVIDIA A100-SXM4-80GB', 312, 156),
        ('NVIDIA L4', 121, 60.5),
        ('NVIDIA L40S', 362, 183),
        ('NVIDIA GeForce RTX 4090', 165, 82.5),
        ('cpu', None, None),
        ('NVIDIA A1000', None, None),
        ('NVIDIA GeForce RTX 4090 Laptop GPU', None, None),
    ],
)
def test_peaks(kind, bfloat16, float32):
    for dtype, expected in {'bfloat16': bfloat16, 'float32': float32}.items():
        found = peaks.peak(kind, dtype)
        assert found == (expected and pytest.approx(1e12 * expected)), dtype


def test_chips_have_the_peaks_of_their_names():
    assert [chip.flops / 1e12 for chip in chips.CHIPS.values()] == [275, 197, 459, 918]


def test_speeds_of_a_step():
    speeds = Work(64, flops=2e12, peak=1e13).speeds(seconds=0.5)
    assert speeds == {'images_per_second': 128, 'tflops_per_device': 4, 'mfu': 0.4}
    assert 'mfu' not in Work(64, flops=2e12).speeds(0.5)


def test_devices_share_the_work_of_a_step():
    config = load.load_config('digits:smoke')
    config = load.config_of(config, {'model.grid': 2, 'model.channels': 16, 'model.classes': 10})
    mesh = sharding.make_mesh(config.mesh)
    built = program.build(config, mesh, 0, 1)
    found = speed.work(16, built.flops, mesh, config.model.dtype)
    assert found.flops * jax.device_count() == pytest.approx(16 * built.flops)
    assert found.peak is None  # of a CPU


def test_mfu_and_memory_are_written_and_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, 'memory', lambda: {'memory_gb': 12.5})
    made = Metrics(tmp_path, 0, 10)
    values = {'loss': 0.5, 'mask_ratio': 0.7, 'gradient_norm': 0.25, 'learning_rate': 1e-3}
    made.write(1, values, Work(16, 1e9, 1e30), 0.0)
    made.close()
    line = json.loads((tmp_path / 'metrics.jsonl').read_text())
    assert line['memory_gb'] == 12.5 and 0 < line['mfu'] < 1e-9 < line['tflops_per_device']
    assert ' images/s (MFU 0.00)  ' in capsys.readouterr().out


def test_memory_is_the_most_that_was_in_use(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    for stats, found in ((None, {}), ({'peak_bytes_in_use': 2e9}, {'memory_gb': 2.0})):
        monkeypatch.setattr(jax, 'local_devices', lambda stats=stats: [Device(stats)])
        assert speed.memory() == found
