"""Pictures of every kind, from folders and TFDS: their pixels, labels, order and damage."""

import io
import os
import pickle
import shutil
import subprocess
import sys
from concurrent import futures

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from emigm_jax.data import sources
from emigm_jax.data.folder import ImageFolder
from emigm_jax.data.pictures import center_crop, decode
from emigm_jax.data.sources import Unreadable
from emigm_jax.data.tfds_source import TFDS
from emigm_jax.errors import UserError
from support.pictures import jpeg, png, scene, write_folder, write_tfds


def test_digits_are_those_of_scikit_learn():
    found, expected = sources.digits(), datasets.load_digits()
    np.testing.assert_array_equal(found.images[..., 0], np.round(expected.images / 16 * 255))
    np.testing.assert_array_equal(found.labels, expected.target)
    assert found.images.dtype == np.uint8 and found.labels.dtype == np.int32


def test_training_imports_little():
    """As long as jax itself take scikit-learn and scipy.stats, of which digits need a file."""
    code = (
        'import sys; from emigm_jax.api import train; from emigm_jax.data import sources\n'
        'from emigm_jax.core import masking, reveal\n'
        'sources.digits(); masking.budgets(masking.MaskingConfig(), 64, 2)\n'
        'reveal.plan(reveal.RevealConfig(), 64)\n'
        'print(sorted(sys.modules.keys() & {"sklearn", "scipy.stats", "tensorflow", "torch"}))'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == '[]'


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp('pictures'), 48, np.random.default_rng(0))


@pytest.mark.parametrize(
    ('width', 'height', 'size'),
    [
        (500, 375, 64),
        (375, 500, 64),
        (64, 64, 64),
        (1, 7, 8),
        (33, 31, 64),
        (511, 129, 64),
        (128, 128, 64),
        (127, 300, 64),
        (640, 481, 37),
    ],
)
def test_crop_is_that_of_adm(width, height, size):
    image = Image.fromarray(scene(np.random.default_rng(width), width, height))
    want = image
    while True:  # in the order of the original's description
        w, h = want.size
        if min(w, h) < 2 * size:
            break
        want = want.resize((w // 2, h // 2), Image.Resampling.BOX)
    ratio = size / min(want.size)
    want = want.resize((round(w * ratio), round(h * ratio)), Image.Resampling.BICUBIC)
    y, x = (want.size[1] - size) // 2, (want.size[0] - size) // 2
    got = center_crop(image, size)
    assert got.shape == (size, size, 3)
    np.testing.assert_array_equal(got, np.asarray(want.crop((x, y, x + size, y + size))))


def test_modes():
    rgb = scene(np.random.default_rng(1), 24, 16)
    image = Image.fromarray(rgb)
    grey = np.asarray(image.convert('L'))
    read = lambda data: np.asarray(decode(data, 'x'))
    np.testing.assert_array_equal(read(png(image)), rgb)
    np.testing.assert_array_equal(read(png(image.convert('L'))), np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(read(png(image.convert('RGBA'))), rgb)
    # 16 bits are scaled; convert('RGB') alone would make nearly all of it white.
    deep = png(Image.fromarray(grey.astype(np.uint16) * 257))
    np.testing.assert_array_equal(read(deep), np.repeat(grey[..., None], 3, -1))
    few = image.convert('P', palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(read(png(few)), np.asarray(few.convert('RGB')))
    close = lambda a, b: np.abs(a.astype(int) - b).mean() < 6
    assert close(read(jpeg(image.convert('CMYK'), quality=95)), rgb)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read(jpeg(image, exif=exif.tobytes(), quality=95))
    assert turned.shape == (24, 16, 3)
    assert close(turned, np.rot90(rgb, -1))
    frames = io.BytesIO()
    image.save(frames, 'GIF', save_all=True, append_images=[Image.new('RGB', (24, 16))])
    assert close(read(frames.getvalue()), rgb)


def test_damage(monkeypatch):
    whole = jpeg(Image.fromarray(scene(np.random.default_rng(2), 300, 300)), quality=95)
    for data in (whole[: len(whole) // 2], b'Dear all', b'', whole[:10]):
        with pytest.raises(Unreadable, match='torn'):
            decode(data, 'torn')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with pytest.raises(Unreadable, match='DecompressionBomb'):
        decode(whole, 'bomb')


def test_folder(written):
    source = ImageFolder(written.path)
    assert source.class_names == tuple(written.classes)
    names = [source.name(i) for i in range(len(source))]
    assert names == sorted(written.readable + written.unreadable)
    pickled = pickle.loads(pickle.dumps(source))
    good = [i for i, name in enumerate(names) if name in set(written.readable)]
    with futures.ThreadPoolExecutor(8) as pool:
        examples = list(pool.map(pickled.example, good))
    for i, example in zip(good, examples, strict=True):
        assert example.name == names[i]
        assert example.image.mode == 'RGB'
        assert source.class_names[example.label] == example.name.split('/')[0]
    for i in set(range(len(source))) - set(good):
        with pytest.raises(Unreadable):
            source.example(i)


def test_fingerprint_tells_content_and_order(written, tmp_path):
    first = ImageFolder(written.path).fingerprint()
    copy = tmp_path / 'copy'
    shutil.copytree(written.path, copy)
    assert ImageFolder(copy).fingerprint() == first
    (copy / written.readable[0]).rename(copy / 'n01/zzz.png')
    assert ImageFolder(copy).fingerprint() != first
    (copy / written.readable[1]).write_bytes(b'shorter')
    assert len({first, ImageFolder(copy).fingerprint()}) == 2


def test_odd_folders(tmp_path):
    with pytest.raises(UserError, match='no such folder'):
        ImageFolder(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='holds no class folders'):
        ImageFolder(tmp_path)
    picture = png(Image.new('RGB', (9, 9)))
    deep = tmp_path / 'b' / 'deeper'
    deep.mkdir(parents=True)
    (deep / 'x.PNG').write_bytes(picture)
    (tmp_path / 'a').mkdir()
    with pytest.raises(UserError, match='class folder a holds no pictures'):
        ImageFolder(tmp_path)
    os.symlink(deep / 'x.PNG', tmp_path / 'a/link.png')
    odd = os.fsdecode(b'caf\xe9.png')  # Latin-1: no UTF-8
    (tmp_path / 'a' / odd).write_bytes(picture)
    source = ImageFolder(tmp_path)
    assert [source.name(i) for i in range(3)] == [f'a/{odd}', 'a/link.png', 'b/deeper/x.PNG']
    assert [source.example(i).label for i in range(3)] == [0, 0, 1]
    assert source.fingerprint()


def test_folder_in_a_bucket(written, tmp_path):
    """The listing of a bucket gives what scandir gives."""
    import fsspec

    from emigm_jax.data import listing

    fsspec.filesystem('memory').put(str(written.path), '/pictures', recursive=True)
    listed = listing.remote('memory://pictures')
    local = listing.local(str(written.path))
    assert sorted(listed.pictures) == sorted(local.pictures)
    assert sorted(listed.folders) == sorted(local.folders) == written.classes
    assert listed.passed_over == local.passed_over == {'.txt': 1, 'hidden': 1}


def test_tfds(tmp_path):
    data = write_tfds(tmp_path, 11, np.random.default_rng(3))
    source = pickle.loads(pickle.dumps(TFDS(data.name, 'train', str(tmp_path))))
    assert source.class_names == ('cat', 'dog', 'owl')
    assert len(source) == 11
    for i in (0, 5, 6, 10):
        example = source.example(i)
        assert (example.label, example.name) == (data.labels[i], f'{i:03}.png')
        np.testing.assert_array_equal(np.asarray(example.image), data.images[i])
    part = TFDS(data.name, 'train[:3]', str(tmp_path))
    assert len(part) == 3
    assert part.fingerprint() != source.fingerprint()
    for name, split, says in [
        ('nothing', 'train', 'tfds build nothing --data_dir='),
        (data.name, 'test', 'it has train'),
    ]:
        with pytest.raises(UserError, match=says):
            TFDS(name, split, str(tmp_path))
    features = tmp_path / data.name / '1.0.0/features.json'
    features.write_text(features.read_text().replace('"label"', '"kind"'))
    with pytest.raises(UserError, match="has no feature 'label'"):
        TFDS(data.name, 'train', str(tmp_path))


def test_damaged_records_of_tfds_are_unreadable_pictures(tmp_path):
    data = write_tfds(tmp_path, 2, np.random.default_rng(3))
    source = TFDS(data.name, 'train', str(tmp_path))
    sound = bytes(source._records[0])
    far = sound.replace(b'label', b'LABEL')  # a name of the same length: nothing else changes
    source._records = [b'\xff' * 9, b'', far, sound[:40]]
    for i, record in enumerate(source._records):
        with pytest.raises(Unreadable, match='the record is damaged') as caught:
            source.example(i)
        assert caught.value.name == f'train/{i}', record
    source._records, source.class_names = [sound], ()
    with pytest.raises(Unreadable, match='of 0 classes'):
        source.example(0)


def test_tensorflow_is_not_imported(tmp_path):
    data = write_tfds(tmp_path, 2, np.random.default_rng(4))
    program = (
        'import sys; from emigm_jax.data.tfds_source import TFDS\n'
        f'TFDS({data.name!r}, "train", {str(tmp_path)!r}).example(1)\n'
        'assert "tensorflow" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', program], check=True)


def test_without_tfds(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
    with pytest.raises(UserError, match=r'emigm_jax\[tfds\]'):
        TFDS('imagenet2012')
