"""Every file that Pillow opens is used with its right values, or is named with the reason."""

import io
import os
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from emigm_jax.cli import main
from emigm_jax.data import datasets, listing, pictures
from emigm_jax.data.folder import ImageFolder
from emigm_jax.data.pictures import center_crop, decode
from emigm_jax.data.sources import Unreadable
from emigm_jax.errors import UserError, printable
from emigm_jax.evaluation import image_sets
from support.pictures import jpeg, png, scene

GREY = (np.arange(64, dtype=np.uint8) * 4).reshape(8, 8)


def written(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(array, photometric=1, sample_format=1, bits=0):
    """A grey TIFF of any type of numbers, which Pillow does not write all; `bits` are packed."""
    data, (height, width) = array.tobytes(), array.shape
    if bits:
        columns = array[..., None] >> np.arange(bits)[::-1] & 1
        data = np.packbits(columns.astype(np.uint8)).tobytes()
    bits = bits or 8 * array.itemsize
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric}
    entries |= {273: 8, 277: 1, 278: height, 279: len(data), 339: sample_format}
    fields = b''.join(struct.pack('<HHII', tag, 4, 1, v) for tag, v in entries.items())
    head = struct.pack('<2sHI', b'II', 42, 8 + len(data))
    return head + data + struct.pack('<H', len(entries)) + fields + bytes(4)


def shown(data, name='x'):
    return np.asarray(decode(data, name))


def as_rgb(grey):
    return np.repeat(grey[..., None], 3, -1)


@pytest.mark.parametrize('kind', pictures.FORMATS)
def test_every_format(kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip('this Pillow does not write it')
    image = Image.fromarray(scene(np.random.default_rng(0), 64, 64))
    lossless = {'JPEG': dict(quality=95), 'WEBP': dict(lossless=True), 'AVIF': dict(quality=95)}
    sizes = dict(sizes=[(64, 64)]) if kind == 'ICO' else {}
    data = written(image, kind, **lossless.get(kind, sizes))
    for ending in pictures.FORMATS[kind]:
        got = shown(data, f'a{ending.upper()}')
        assert np.abs(got.astype(int) - np.asarray(image)).mean() < (8 if kind == 'GIF' else 4)
    for part in (0.9, 0.5, 0.1):
        with pytest.raises(Unreadable):
            decode(data[: int(part * len(data))], f'a{ending}')


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr'])
def test_modes_keep_their_colours(mode):
    image = Image.fromarray(scene(np.random.default_rng(1), 16, 16)).convert(mode)
    kind = 'TIFF' if mode in ('CMYK', 'YCbCr') else 'PNG'
    got = shown(written(image, kind))
    np.testing.assert_allclose(got, np.asarray(image.convert('RGB')), atol=2)


def test_a_palette_with_transparency():
    image = Image.fromarray(scene(np.random.default_rng(1), 16, 16)).convert('P')
    got = shown(written(image, 'PNG', transparency=bytes(range(256))))
    np.testing.assert_array_equal(got, np.asarray(image.convert('RGB')))


DEEP = GREY.astype(np.uint16) * 257
TWELVE = np.linspace(0, 4095, 64).round().astype(np.int64).reshape(8, 8)


@pytest.mark.parametrize(
    ('name', 'data', 'want'),
    [
        ('png', png(Image.fromarray(DEEP)), GREY),
        ('jp2', written(Image.fromarray(DEEP), 'JPEG2000'), GREY),
        ('tif', tiff(DEEP), GREY),
        ('tif of 12 bits', tiff(TWELVE, bits=12), np.round(TWELVE / 4095 * 255).astype(np.uint8)),
        ('zero is white', tiff(DEEP, photometric=0), 255 - GREY),
        ('8 bits, zero is white', tiff(GREY, photometric=0), 255 - GREY),
        ('pgm of 16 bits', b'P5 8 8 65535\n' + DEEP.astype('>u2').tobytes(), GREY),
        ('pgm of 10 bits', b'P5 2 1 1023\n\x00\x00\x03\xff', np.array([[0, 255]], np.uint8)),
        ('pgm of 4 bits', b'P5 2 1 15\n\x00\x0f', np.array([[0, 255]], np.uint8)),
        ('text', b'P2 2 1 65535\n0 65535', np.array([[0, 255]], np.uint8)),
    ],
)  # fmt: skip
def test_deep_grey_is_scaled(name, data, want):
    np.testing.assert_array_equal(shown(data), as_rgb(want))


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (tiff(GREY.astype(np.float32) / 255, sample_format=3), 'floating-point pixels have no'),
        (b'Pf\n2 1\n-1.0\n' + np.float32([0, 1]).tobytes(), 'floating-point pixels have no'),
        (tiff(GREY.astype(np.uint32)), 'signed and 32-bit pixels have no agreed range'),
        (tiff(GREY.astype(np.int16), sample_format=2), 'signed and 32-bit pixels'),
        (tiff(GREY.astype(np.int8), sample_format=2), 'signed and 32-bit pixels'),
        (b'', 'is empty'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n', 'no picture of a known'),
        (b'%PDF-1.4\n', 'no picture of a known kind'),
    ],
)
def test_what_has_no_right_values_is_named(data, reason):
    with pytest.raises(Unreadable, match=r'x\.jpg') as error:
        decode(data, 'x.jpg')
    assert reason in error.value.reason


def test_postscript_is_never_run(monkeypatch):
    from PIL import EpsImagePlugin

    run = lambda *_, **__: pytest.fail('Ghostscript was started')
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', run)
    eps = written(Image.fromarray(as_rgb(GREY)), 'EPS')
    for name in ('a.jpg', 'a.eps', 'a', 'a.png'):
        with pytest.raises(Unreadable, match='no picture of a known kind'):
            decode(eps, name)


def test_every_turn_of_a_camera():
    rgb = scene(np.random.default_rng(3), 24, 16)
    turned = {1: rgb, 2: rgb[:, ::-1], 3: np.rot90(rgb, 2), 4: rgb[::-1]}
    turned |= {5: rgb.transpose(1, 0, 2), 6: np.rot90(rgb, -1), 8: np.rot90(rgb)}
    turned[7] = np.rot90(rgb, 2).transpose(1, 0, 2)
    for way, want in turned.items():
        exif = Image.Exif()
        exif[0x0112] = way
        image = Image.fromarray(rgb)
        np.testing.assert_array_equal(shown(written(image, 'PNG', exif=exif.tobytes())), want)
        webp = written(image, 'WEBP', exif=exif.tobytes(), lossless=True)
        np.testing.assert_array_equal(shown(webp), want)
        np.testing.assert_array_equal(shown(written(image, 'TIFF', tiffinfo={274: way})), want)
    broken = jpeg(Image.fromarray(rgb), exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff' + b'\1' * 40)
    assert shown(broken).shape == rgb.shape


@pytest.mark.parametrize('kind', ['GIF', 'PNG', 'WEBP', 'TIFF'])
def test_the_first_frame_of_several(kind):
    first, second = (Image.new('RGB', (16, 8), colour) for colour in ('red', 'blue'))
    more = dict(save_all=True, append_images=[second])
    lossless = dict(lossless=True) if kind == 'WEBP' else {}
    np.testing.assert_array_equal(shown(written(first, kind, **more, **lossless)), first)


def test_a_strip_is_cropped_before_it_is_enlarged(monkeypatch):
    for size in ((60000, 1), (1, 60000)):
        assert center_crop(Image.new('RGB', size, 'red'), 256).shape == (256, 256, 3)
    rng = np.random.default_rng(0)
    for width, height in ((700, 3), (4, 513), (1000, 13), (1, 1), (40, 33)):
        image = Image.fromarray(scene(rng, width, height))
        want = center_crop(image, 32).astype(int)
        monkeypatch.setattr(pictures, '_MOST', 0)
        assert np.abs(center_crop(image, 32) - want).max() <= 1
        monkeypatch.undo()


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    """A folder of files as people have them."""
    root = tmp_path_factory.mktemp('odd')
    picture = Image.new('RGB', (9, 9), 'red')
    (root / 'a/deep').mkdir(parents=True)
    (root / 'b').mkdir()
    used = {
        'a/x.jfif': jpeg(picture),
        'a/UPPER.JPG': jpeg(picture),
        'a/none': png(picture),
        'a/photo.jpg_large': jpeg(picture),
        'a/query.png?w=9': png(picture),
        'a/deep/x.bmp.1': written(picture, 'BMP'),
        'b/scan': written(picture, 'TIFF'),
        os.fsdecode(b'b/caf\xe9.png'): png(picture),
        'b/two\nlines.png': png(picture),
    }  # fmt: skip
    named = {'a/empty.png': b'', 'b/torn.jpg': jpeg(picture)[:300], 'b/note.gif': b'Dear all'}
    left = {
        'a/readme.txt': b'no', 'a/more.TXT': b'P1 of my novel', 'b/README': b'BMW',
        'b/nothing': b'',
        'b/raw.dng': written(picture, 'TIFF'), 'b/x.eps': written(picture, 'EPS'),
        'b/._x.jpg': b'', 'list.csv': b'1', 'cover.png': png(picture),
    }  # fmt: skip
    for name, data in (used | named | left).items():
        (root / name).write_bytes(data)
    os.symlink(root / 'a/none', root / 'b/link')
    os.symlink(root / 'nowhere.png', root / 'b/nowhere.png')
    os.symlink(root / 'nowhere', root / 'b/nowhere')
    os.symlink(root, root / 'b/circle')
    os.symlink('self', root / 'b/self')
    os.mkfifo(root / 'b/pipe.png')
    return root, sorted([*used, 'b/link']), sorted([*named, 'b/nowhere.png'])


PASSED = {
    '.txt': 2, 'no ending': 2, '.dng': 1, '.eps': 1, '.csv': 1, 'hidden': 1, 'broken links': 2,
    'links in a circle': 1, 'no files': 1,
}  # fmt: skip


def test_odd_names_files_and_links(odd):
    root, used, named = odd
    source = ImageFolder(root)
    names = [source.name(i) for i in range(len(source))]
    assert sorted(names) == sorted(used + named)
    assert source.passed_over == {**PASSED, 'outside of class folders': 1}
    for i, name in enumerate(names):
        if name in used:
            assert np.ptp(np.asarray(source.example(i).image), (0, 1)).max() <= 2
        else:
            with pytest.raises(Unreadable, match=r'empty|torn|note|nowhere') as error:
                source.example(i)
            assert error.value.reason
    everything = image_sets.Below(root)
    assert len(everything) == len(names) + 1
    assert everything.passed_over == PASSED


def test_a_bucket_is_listed_like_a_disk(odd, tmp_path):
    import fsspec

    root, *_ = odd
    system = fsspec.filesystem('memory')
    for file in root.rglob('*'):
        if file.is_file() and not file.is_symlink():
            system.pipe(f'/odd/{file.relative_to(root)}', file.read_bytes())
    disk, bucket = listing.local(str(root)), listing.remote('memory://odd')
    linked = {'b/link', 'b/nowhere.png'}
    assert sorted(bucket.pictures) == sorted(p for p in disk.pictures if p[0] not in linked)
    assert sorted(bucket.folders) == ['a', 'b']
    links = ('broken links', 'links in a circle', 'no files')
    assert bucket.passed_over == {k: n for k, n in PASSED.items() if k not in links}


def test_pictures_without_class_folders_are_one_class(tmp_path):
    for i in range(3):
        (tmp_path / f'{i}.png').write_bytes(png(Image.new('RGB', (9, 9))))
    (tmp_path / 'notes.md').write_text('')
    source = ImageFolder(tmp_path)
    assert source.class_names == (tmp_path.name,)
    assert [source.example(i).label for i in range(3)] == [0, 0, 0]
    assert source.passed_over == {'.md': 1}


def test_refusals_say_what_lies_there(tmp_path):
    (tmp_path / 'cat').mkdir()
    for i in range(3):
        (tmp_path / f'cat/{i}.heic').write_bytes(b'\0\0\0\x18ftypheic')
    with pytest.raises(UserError, match=r'class folder cat holds no pictures; .*: .heic 3'):
        ImageFolder(tmp_path)
    with pytest.raises(UserError, match=r'holds no pictures, but .heic 3'):
        image_sets.Below(tmp_path)
    many = {f'.{i}': i for i in range(1, 12)}
    assert listing.described(many).endswith('.5 5, .4 4, others 6')


def test_huge_files_are_not_read(tmp_path):
    (tmp_path / 'a').mkdir()
    with open(tmp_path / 'a/huge.tif', 'wb') as f:
        f.truncate(pictures.LARGEST + 1)  # a hole
    with pytest.raises(Unreadable, match=r'has 1\.1 GB'):
        ImageFolder(tmp_path).example(0)


def test_names_are_shown_on_one_line_everywhere(capsys, monkeypatch):
    name = os.fsdecode(b'caf\xe9\n.png')
    assert printable(name) == r'caf\xe9\n.png'
    assert printable('n\xe9 \u732b.png') == 'n\xe9 \u732b.png'
    strict = io.TextIOWrapper(io.BytesIO(), 'utf-8', errors='strict')
    monkeypatch.setattr(sys, 'stdout', strict)
    datasets._warn(name, 'torn')
    assert strict.tell() > 0


def test_commands_say_what_they_leave_out(odd, tmp_path, capsys):
    command = ['prepare', 'reference', str(tmp_path / 'x.npz'), '--folder', str(odd[0])]
    assert main.main([*command, '--inception', 'nowhere']) == 2
    assert f'left out, as no pictures: {listing.described(PASSED)}\n' in capsys.readouterr().out
