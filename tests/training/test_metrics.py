"""The line of progress that a training run prints."""

import pytest

from emigm_jax.training.metrics import Metrics

BESIDE = {'mask_ratio': 0.7, 'gradient_norm': 0.25, 'learning_rate': 1e-3}


@pytest.mark.parametrize(
    ('parts', 'shown'),
    [
        ({'mse': 0.4, 'vlb': 0.1}, 'mse 0.4000, vlb 0.1000'),
        ({'cross_entropy': 0.5}, 'cross_entropy 0.5000'),
    ],
)
def test_the_parts_of_a_loss_are_those_of_its_head(tmp_path, capsys, parts, shown):
    metrics = Metrics(tmp_path, 0, 10)
    metrics.write(2, {'loss': 0.5, **parts, **BESIDE}, 16, 0.0)
    metrics.close()
    assert capsys.readouterr().out.startswith(f'step 2/10  loss 0.5000 ({shown})  grad 0.25  ')
