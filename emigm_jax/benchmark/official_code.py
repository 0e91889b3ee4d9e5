"""The official eMIGM at work in a process of its own: a line in, a step, its seconds out.

`emigm benchmark --against` runs this file by a Python that has torch and what the official code
imports. It imports nothing of ours, and is imported by nothing.
"""

import contextlib
import functools
import importlib
import json
import os
import sys
import time

import numpy as np


def main(file):
    """Serves steps as a JSON file describes them (`against.Official`) until there is no more in."""
    with open(file) as f:
        asked = json.load(f)
    sys.path.insert(0, asked['folder'])
    answers, sys.stdout = os.fdopen(os.dup(1), 'w'), sys.stderr  # the official code prints, too

    torch = importlib.import_module('torch')  # which is none of ours to require
    gpu = torch.cuda.is_available()
    if not gpu:
        _leave_on_cpu(torch)
    model = _model(torch, asked).to('cuda' if gpu else 'cpu')
    step = {'train': _training, 'sample': _sampling}[asked['what']](torch, model, asked)
    device = torch.cuda.get_device_name() if gpu else f'cpu, {torch.get_num_threads()} threads'
    print(f'torch {torch.__version__}, {device}', file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        if gpu:
            torch.cuda.synchronize()
        print(time.perf_counter() - start, file=answers, flush=True)


def _leave_on_cpu(torch):
    """The official code says cuda outright."""
    linspace = torch.linspace
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.linspace = lambda *sizes, device=None, **others: linspace(*sizes, **others)


def _model(torch, asked):
    emigm = importlib.import_module('models.emigm')
    torch.manual_seed(0)
    norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)  # of all its published sizes
    model = emigm.eMIGM(norm_layer=norm, **asked['arguments'])
    with np.load(asked['weights']) as weights:
        model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    return model


def _precision(torch, asked):
    """Around what is computed in half precision, as the official engine does."""
    if asked['dtype'] == 'float32':
        return contextlib.nullcontext()
    kind = 'cuda' if torch.cuda.is_available() else 'cpu'
    return torch.autocast(kind, getattr(torch, asked['dtype']))


def _training(torch, model, asked):
    """A step as engine_emigm.py:32-86 takes it: loss, gradient, clip, AdamW, average."""
    place = next(model.parameters()).device
    sizes, batch = asked['arguments'], asked['batch']
    side = sizes['img_size'] // sizes['vae_stride']
    latents = torch.randn(batch, sizes['vae_embed_dim'], side, side, device=place)
    labels = torch.randint(sizes['class_num'], (batch,), device=place)
    parameters, settings = list(model.parameters()), asked['optimizer']
    # Vectors are not decayed (util/misc.py:add_weight_decay).
    groups = [
        dict(params=[p for p in parameters if p.ndim > 1], weight_decay=settings['weight_decay']),
        dict(params=[p for p in parameters if p.ndim <= 1], weight_decay=0.0),
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=settings['betas'])
    averages = [p.detach().clone() for p in parameters]
    model.train()

    def step():
        with _precision(torch, asked):
            loss = model(latents, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings['clip'])
        optimizer.step()
        for average, p in zip(averages, parameters, strict=True):
            average.mul_(settings['ema_decay']).add_(p.detach(), alpha=1 - settings['ema_decay'])
        loss.item()

    return step


def _sampling(torch, model, asked):
    """Tokens of a batch, without the tokenizer (engine_emigm.py:158-167)."""
    place = next(model.parameters()).device
    labels = torch.arange(asked['batch'], device=place) % asked['arguments']['class_num']
    model.eval()

    def step():
        with torch.no_grad(), _precision(torch, asked):
            model.sample_tokens(asked['batch'], labels=labels, **asked['sampling'])

    return step


if __name__ == '__main__':
    main(sys.argv[1])
