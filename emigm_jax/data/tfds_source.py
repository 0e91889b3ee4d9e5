"""TFDS image-classification data sets in array_record form, read without TensorFlow.

Records are decoded here, by Pillow, so that the pixels are those that a folder would give.
"""

import os
from typing import Any, final

from emigm_jax.data.pictures import decode
from emigm_jax.data.sources import Example, Source, Unreadable
from emigm_jax.errors import UserError, printable
from emigm_jax.io import files, gcs, paths


@final
class TFDS(Source):
    """See `sources.Source`.

    Args:
      name: of the data set, e.g. 'imagenet2012' or 'imagenet_resized/64x64:0.1.0'.
      split: e.g. 'train', 'train[:1%]'.
      data_dir: where data sets lie; None: where TFDS keeps them.

    Raises:
      UserError: TFDS is not installed, the data set is not there or not in array_record form, or
        it has no pictures with labels.
    """

    kind = 'tfds'

    def __init__(self, name: str, split: str = 'train', data_dir: os.PathLike | str | None = None):
        try:
            import tensorflow_datasets as tfds
            from tensorflow_datasets.core import read_only_builder
        except ImportError as error:
            raise UserError(
                f"reading TFDS data sets needs the extra: pip install 'emigm_jax[tfds]' ({error})"
            ) from error
        flag = f' --data_dir={data_dir}' if data_dir else ''
        remedy = (
            f'prepare it once, with TensorFlow installed: tfds build {name}{flag} '
            '--file_format=array_record'
        )
        try:
            place = paths.absolute(data_dir) if data_dir else None
            builder: Any = read_only_builder.builder_from_files(name, data_dir=place)
        except Exception as error:  # TFDS has many, and they are long
            where = f'not found in {data_dir}' if data_dir else 'not found'
            raise UserError(f'TFDS data set {name!r}: {where}; {remedy}') from error
        self._check_features(tfds, name, builder.info.features)
        if not any(f.value == 'array_record' for f in builder.info.available_file_formats()):
            raise UserError(
                f'TFDS data set {name!r} in {builder.data_dir}: is not in array_record '
                f'form; delete it and {remedy}'
            )
        try:
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._records = builder.as_data_source(split=split, deserialize_method=raw)
        except Exception as error:
            reason, splits = ' '.join(str(error).split())[:200], ', '.join(builder.info.splits)
            raise UserError(
                f'TFDS data set {name!r}, split {split!r}: cannot be read ({reason}); '
                f'it has {splits}'
            ) from error
        self._split = split
        self._identity = f'{builder.info.full_name} {split}'
        self.class_names = tuple(builder.info.features['label'].names)

    @staticmethod
    def _check_features(tfds, name, features):
        for key, kind in (('image', tfds.features.Image), ('label', tfds.features.ClassLabel)):
            if key not in features or not isinstance(features[key], kind):
                raise UserError(
                    f'TFDS data set {name!r}: has no feature {key!r} of kind '
                    f'{kind.__name__}; it has {", ".join(features)}'
                )

    def __len__(self) -> int:
        return len(self._records)

    def name(self, i: int) -> str:
        """The file name in record i, or its place in the split."""
        return self._name(i, self._features(i))

    def _features(self, i):
        from tensorflow_datasets.proto import tf_example_pb2

        # protobuf makes the class when it is imported.
        example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
        return example.FromString(self._records[i]).features.feature

    def _name(self, i, features):
        if 'file_name' in features:
            return features['file_name'].bytes_list.value[0].decode('utf-8', 'replace')
        return f'{self._split}/{i}'

    def example(self, i: int) -> Example:
        """`Example` i; raises `sources.Unreadable`."""
        try:
            features = self._features(i)
            name = self._name(i, features)
            picture = features['image'].bytes_list.value[0]
            label = int(features['label'].int64_list.value[0])
        except Exception as error:  # protobuf and array_record have their own
            place, reason = f'{self._split}/{i}', f'the record is damaged ({gcs.brief(error)})'
            raise Unreadable(place, printable(reason)) from error
        if not 0 <= label < len(self.class_names):
            raise Unreadable(name, f'has label {label} of {len(self.class_names)} classes')
        return Example(decode(picture, name), label, name)

    def fingerprint(self) -> str:
        """Digest of name, version, split and count."""
        return files.text_hash([f'{self._identity} {len(self)}'])
