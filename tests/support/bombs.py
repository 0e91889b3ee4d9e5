"""Small files that are meant to cost much: each is read, or turned away, for little.

    python -m support.bombs [NAME ...]

reads them in this process, whose memory and time are bounded, and prints what each took.
"""

import io
import json
import pathlib
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import msgpack
import numpy as np
from PIL import Image

from emigm_jax.conversion import convert
from emigm_jax.data import latents
from emigm_jax.data.pictures import center_crop, decode
from emigm_jax.evaluation import image_sets, references
from emigm_jax.io import files
from support import caches, checkpoint_files, fuzz
from support.checkpoint_files import SIX, Op, emit, glob, storage, tensor, write_zip

MEMORY = 2**26  # bytes beyond those of the process
SECONDS = 2.0  # of processors
COMPRESSED = 3 * 2**25  # bytes that a few kilobytes stand for
BIG = b'\x8b' + struct.pack('<i', 20_000) + b'\x7f' * 20_000  # LONG4, of 160,000 bits


def _npz(method):
    """A hundred megabytes of zeros as an npz; bz2 gives them back all at once."""

    def write(path):
        head = io.BytesIO()
        facts = dict(descr='|u1', fortran_order=False, shape=(COMPRESSED // 3, 1, 1, 3))
        np.lib.format.write_array_header_1_0(head, facts)
        with (
            zipfile.ZipFile(path, 'w', method) as archive,
            archive.open('arr_0.npy', 'w') as member,
        ):
            member.write(head.getvalue())
            for _ in range(COMPRESSED >> 24):
                member.write(bytes(2**24))

    return write


def _deflated_statistics(path):
    """mu of 80 million numbers, of which none is read: they are no statistics of FID."""
    _npz(zipfile.ZIP_DEFLATED)(path)
    content = path.read_bytes().replace(b'arr_0.npy', b'sigma.npy')
    path.write_bytes(content)
    with zipfile.ZipFile(path, 'a') as archive:
        file = io.BytesIO()
        np.save(file, np.zeros(2048))
        archive.writestr('mu.npy', file.getvalue())


def _npy_header(path):
    """A header of 4 GB, as its length says."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('arr_0.npy', b'\x93NUMPY\x02\0' + b'\xff' * 4 + b' ' * 100)


def _labels(path):
    """Labels of a cache by the billion."""
    caches.make(path, caches.Made(8), shard_rows=4)
    head = io.BytesIO()
    facts = dict(descr='<i4', fortran_order=False, shape=(2**38,))
    np.lib.format.write_array_header_1_0(head, facts)
    (path / 'labels.npy').write_bytes(head.getvalue())


def _manifest(**changes):
    def write(path):
        caches.make(path, caches.Made(8), shard_rows=4)
        manifest = {**files.read_json(path / 'manifest.json'), **changes}
        (path / 'manifest.json').write_text(json.dumps(manifest))

    return write


def _again(value, operations, times, end=b'e'):
    """A list of what operations make of the value 1 of the memo, again and again."""
    return Op(value, b'q\x01]', b'(', *[operations] * times, end)


def _keys(keys):
    return Op(b'}(', *(part for key in keys for part in (key, b'N')), b'u')


def _tuples(count):
    """Pairs of numbers that Python's own hash of tuples takes for the same."""
    prime, other, mask = 11400714785074694791, 14029467366897019727, 2**64 - 1
    turned = lambda n: (n << 31 | n >> 33) & mask
    inverse, first, keys = pow(other, -1, 2**64), 2870177450012600261, []
    number = 0
    while len(keys) < count:
        number += 1
        after = turned((first + number * other) & mask) * prime & mask
        second = (0 - after) * inverse & mask
        if second < 2**61 - 1:  # as it is its own hash
            keys.append((number, second))
    assert len({hash(key) for key in keys}) == 1
    return keys


def _overlapping(path):
    """A thousand entries of an archive that are the same bytes, in the other byte order."""
    tensors = [
        tensor((2**16,), (1,), 0, storage('torch.FloatStorage', str(i), 2**16)) for i in range(1000)
    ]
    blocks = [np.zeros(2**16, np.float32)] + [np.zeros(0, np.float32)] * 999
    write_zip(path, tensors, blocks, b'big')
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo('archive/data/0')
    at = content.find(b'PK\x01\x02')
    while at >= 0:
        names, extra, comment = struct.unpack('<HHH', content[at + 28 : at + 34])
        if content[at + 46 : at + 46 + names].startswith(b'archive/data/'):
            content[at + 16 : at + 28] = struct.pack('<III', first.CRC, 2**18, 2**18)
            content[at + 42 : at + 46] = struct.pack('<I', first.header_offset)
        at = content.find(b'PK\x01\x02', at + 46 + names + extra + comment)
    path.write_bytes(content)


def _safetensors(path):
    """Nine hundred tensors that are all of the same bytes."""
    row = {'dtype': 'U8', 'shape': [2**20], 'data_offsets': [0, 2**20]}
    header = {f'a{i}': row for i in range(900)}
    checkpoint_files.write_safetensors(path, header, bytes(2**20))


def _lists(path):
    """msgpack that makes room for a thousand lists of 65,535, one inside the other."""
    path.write_bytes(b'\x81\xa1a' + b'\xdc\xff\xff' * 1000)


def _leaf():
    return msgpack.ExtType(1, msgpack.packb(([], 'bool', b'\0')))


def _deep_names(path):
    """Three thousand tensors under one name of 30 kB: 90 MB of names."""
    tree = {f'{i:x}': _leaf() for i in range(3000)}
    for _ in range(300):
        tree = {'module.' * 14: tree}
    path.write_bytes(msgpack.packb(tree))


def _wrapped_names(path):
    """60 kB of what wraps modules."""
    tree = {'module.' * 800 + f'{i}.weight': _leaf() for i in range(10)}
    path.write_bytes(msgpack.packb(tree))


def _many_models(path):
    """Two thousand models of one tensor."""
    tree = {f'{i}.diffloss.net.input_proj.weight': _leaf() for i in range(2000)}
    path.write_bytes(msgpack.packb(tree))


def _deep_grey(path):
    Image.fromarray(np.zeros((2000, 2000), np.uint16)).save(path, 'PNG')


def _json(text):
    return lambda path: path.write_text(text)


LONG = 'x' * 100_000
MODULUS = 2**61 - 1  # of the hashes of numbers
PLACES = [MODULUS * i for i in range(20_000)]
SET = Op(b'(', *map(emit, range(10_000)), b'\x91')
TWICE = Op(b'(', *[b'h\x01'] * 1000, b't', b'q\x010(', *[b'h\x01'] * 990, b't')


class Bomb(NamedTuple):
    """A file, or a folder of them."""

    write: Callable[[pathlib.Path], object]
    read: Callable[[pathlib.Path], object]
    line: str  # in that by which it is turned away; '': it is read


def _pickle(line, value):
    return Bomb(lambda path: write_zip(path, value, [SIX]), convert.read, line)


def _cropped(path):
    return center_crop(decode(path.read_bytes(), 'a.png'), 256)


FROZEN = Op(glob('builtins.frozenset'), b'h\x01\x85R')
ENCODED = Op(glob('_codecs.encode'), b'(h\x01', 'latin1', b'tR')
ATTRIBUTE = Op(glob('builtins.getattr'), glob('a.b'), b'h\x01\x86R')
SIZES = Op(b'(', *[BIG] * 10, b't')
UNFOLDS, TOO_LARGE, NO_NAMES = 'unfolds without bounds', 'times as large as it', 'longer than those'

BOMBS = {
    'bz2': Bomb(_npz(zipfile.ZIP_BZIP2), image_sets.stored, 'NumPy never writes'),
    'deflated statistics': Bomb(_deflated_statistics, references.read, 'sigma must be'),
    'header of 4 GB': Bomb(_npy_header, image_sets.stored, 'header of 4,294,967,295 bytes'),
    'labels': Bomb(_labels, latents.Cache, 'wrong number of bytes'),
    'rows': Bomb(_manifest(shape=[60000, 60000, 6]), latents.Cache, 'cannot hold 3 rows'),
    'texts': _pickle('over and over', _again(LONG, ENCODED, 10_000)),
    'joined names': _pickle('more than 500', _again(LONG, Op(b'h\x01h\x01\x93'), 10_000)),
    'attributes': _pickle('more than 500', _again(LONG, ATTRIBUTE, 10_000)),
    'sets': _pickle(UNFOLDS, _again(SET, FROZEN, 4000)),
    'colliding numbers': _pickle('out of range', _keys(MODULUS * i for i in range(20_000))),
    'colliding tuples': _pickle('out of range', _keys(_tuples(10_000))),
    'colliding memo': _pickle('out of range', Op(b'N', *map(b'p%d\n'.__mod__, PLACES))),
    'huge sizes': _pickle('out of range', tensor(SIZES, SIZES)),
    'numbers': _pickle('out of range', [Op(BIG)] * 20),
    'a tensor, often': _pickle('is no table', _again(tensor((6,), (1,)), b'h\x01', 100_000)),
    'a tensor, a million times': _pickle(UNFOLDS, Op(tensor((6,), (1,)), b'q\x010', TWICE)),
    'stride 0': _pickle(TOO_LARGE, {'a': tensor((2**20, 2**20), (0, 0))}),
    'stride 0, often': _pickle(TOO_LARGE, {str(i): tensor((2**17,), (0,)) for i in range(1000)}),
    'archive in itself': Bomb(_overlapping, convert.read, 'larger than the archive'),
    'safetensors in each other': Bomb(_safetensors, convert.read, TOO_LARGE),
    'lists of lists': Bomb(_lists, convert.read, 'exceeds max_array_len'),
    'names of names': Bomb(_deep_names, convert.read, NO_NAMES),
    'wrappers': Bomb(_wrapped_names, convert.read, NO_NAMES),
    'models': Bomb(_many_models, convert.read, 'no file has so many'),
    'strip': Bomb(lambda path: Image.new('RGB', (1, 4000)).save(path, 'PNG'), _cropped, ''),
    'deep grey': Bomb(_deep_grey, _cropped, ''),
    'nested JSON': Bomb(_json('[' * 10**6), files.read_json, 'deeper than'),
    'numbers of JSON': Bomb(_json('{"a": ' + '9' * 10**6 + '}'), files.read_json, 'out of range'),
}


def explode(name, place):
    """What is wrong with how it ends, or '', and the seconds."""
    bomb = BOMBS[name]
    bomb.write(place)
    begin = time.perf_counter()
    with fuzz.limited(MEMORY):
        found = fuzz.outcome(lambda: bomb.read(place), SECONDS, bomb.line)
    return found, time.perf_counter() - begin


def main():
    """Reads all, or those that are named; the number that failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or BOMBS:
            found, took = explode(name, pathlib.Path(folder) / name)
            failed += bool(found)
            print(f'== {name}: {took:.2f} s {found}', flush=True)
    return failed


if __name__ == '__main__':
    fuzz.set_up()
    sys.exit(bool(main()))
