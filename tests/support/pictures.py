"""Folders and data sets of real picture files, sound and damaged, for tests."""

import io
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image


class Folder(NamedTuple):
    """What was written."""

    path: pathlib.Path
    classes: list
    readable: list  # 'CLASS/FILE', in order
    unreadable: list


def scene(rng, width, height):
    """A smooth random picture (H, W, 3) uint8."""
    coarse = rng.integers(256, size=(4, 5, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def jpeg(image, **options):
    """An image as the bytes of a JPEG."""
    file = io.BytesIO()
    image.save(file, 'JPEG', **options)
    return file.getvalue()


def png(image):
    """An image as the bytes of a PNG."""
    file = io.BytesIO()
    image.save(file, 'PNG')
    return file.getvalue()


def _turned(image):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    return jpeg(image, exif=exif.tobytes())


def _deep(image):
    return Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) * 257)


# What pictures in the wild are like: ending, and how an RGB image becomes such a file.
KINDS = (
    ('.JPEG', jpeg),
    ('.png', png),
    ('.jpg', lambda image: jpeg(image.convert('L'))),
    ('.jpg', lambda image: jpeg(image.convert('CMYK'))),
    ('.png', lambda image: png(image.convert('P', palette=Image.Palette.ADAPTIVE))),
    ('.png', lambda image: png(image.convert('RGBA'))),
    ('.jpg', _turned),
    ('.png', lambda image: png(_deep(image))),
)


def write_folder(path, count, rng, classes=('n01', 'n02', 'n10')):
    """Writes about `count` pictures of all `KINDS` and many sizes, and some damaged files."""
    path, readable, unreadable = pathlib.Path(path), [], []
    for name in classes:
        (path / name).mkdir(parents=True)
    for i in range(count):
        ending, make = KINDS[i % len(KINDS)]
        width, height = rng.integers(9, 120, size=2)
        name = f'{classes[i % len(classes)]}/picture_{i:04}{ending}'
        (path / name).write_bytes(make(Image.fromarray(scene(rng, width, height))))
        readable.append(name)
    damaged = {
        f'{classes[0]}/torn.jpg': jpeg(Image.fromarray(scene(rng, 200, 200)), quality=95)[:2000],
        f'{classes[1]}/letter.jpg': b'Dear all,\n',
        f'{classes[2]}/empty.png': b'',
    }
    for name, content in damaged.items():
        (path / name).write_bytes(content)
        unreadable.append(name)
    (path / classes[0] / 'readme.txt').write_text('no picture')
    (path / classes[0] / '.hidden.jpg').write_bytes(b'')
    return Folder(path, list(classes), sorted(readable), sorted(unreadable))


class Prepared(NamedTuple):
    """A TFDS data set that was written."""

    name: str
    labels: list
    images: list  # RGB arrays, as they decode


def write_tfds(path, count, rng, name='shapes', names=('cat', 'dog', 'owl'), split='train'):
    """Writes an image classification data set as TFDS keeps it in array_record form.

    TensorFlow is not needed: records are tf.train.Example messages, which TFDS's own protos write.
    """
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    folder = pathlib.Path(path) / name / '1.0.0'
    folder.mkdir(parents=True)
    shards, labels, images = 2, [], []
    lengths = [count - count // 2, count // 2]
    for shard, length in enumerate(lengths):
        file = folder / f'{name}-{split}.array_record-{shard:05}-of-{shards:05}'
        writer = array_record_module.ArrayRecordWriter(str(file), 'group_size:1')
        for _ in range(length):
            width, height = rng.integers(20, 60, size=2)
            picture = png(Image.fromarray(scene(rng, width, height)))
            label = int(rng.integers(len(names)))
            example = tf_example_pb2.Example()
            features = example.features.feature
            features['image'].bytes_list.value.append(picture)
            features['label'].int64_list.value.append(label)
            features['file_name'].bytes_list.value.append(f'{len(labels):03}.png'.encode())
            writer.write(example.SerializeToString())
            labels.append(label)
            images.append(np.asarray(Image.open(io.BytesIO(picture)).convert('RGB')))
        writer.close()
    features = tfds.features.FeaturesDict(
        {
            'image': tfds.features.Image(),
            'label': tfds.features.ClassLabel(names=names),
            'file_name': tfds.features.Text(),
        }
    )
    info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=lengths,
        num_bytes=0,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, filetype_suffix='array_record', split=split
        ),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[info],
        filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
        check_data=False,
    )
    return Prepared(name, labels, images)
