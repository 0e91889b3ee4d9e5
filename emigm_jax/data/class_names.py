"""Names of classes for people to read and to type: of folders, of data sets, of ImageNet."""

import functools
import importlib.resources
import re
from collections.abc import Iterable, Sequence

from emigm_jax.errors import UserError, near, printable

IMAGENET = 1000  # classes
_LONGEST = 40  # characters of a name in a file's name


@functools.cache
def imagenet() -> tuple[str, ...]:
    """Short English names of ImageNet's 1000 classes, in the order of their labels."""
    text = importlib.resources.files('emigm_jax.data').joinpath('imagenet_classes.txt').read_text()
    return tuple(text.splitlines())


def known(classes: int, saved: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of classes that people know, in the order of the labels; () if nobody knows any.

    Args:
      classes: how many there are.
      saved: names that were saved with them, such as those of folders; () if there are none.
    """
    codes = all(re.fullmatch(r'n\d{8}', name) for name in saved)  # or no names
    if classes == IMAGENET and codes:
        return imagenet()
    return tuple(saved) if len(saved) == classes else ()


def label(name: str, classes: int, saved: Sequence[str] = ()) -> int:
    """The label of a class by its name, as it was saved or in any case.

    Args:
      name: e.g. 'golden retriever', 'n02099601'.
      classes, saved: as in `known`.

    Raises:
      UserError: no class, or several, have this name; the classes have no names.
    """
    if len(saved) == classes and name in saved:
        return list(saved).index(name)
    names = [title.lower() for title in known(classes, saved)]
    if not names:
        raise UserError(
            f'{name!r}: the classes of this model have no names, only 0 to {classes - 1}'
        )
    labels = [i for i, title in enumerate(names) if title == name.lower().strip()]
    if not labels:
        raise UserError(f'no class is called {name!r}{near(name.lower(), names)}')
    if len(labels) > 1:
        raise UserError(f'{len(labels)} classes are called {name!r}: {", ".join(map(str, labels))}')
    return labels[0]


def titles(labels: Iterable[int], classes: int, saved: Sequence[str] = ()) -> list[str]:
    """Titles of labels (-1: the null class): '207 golden retriever', '3' where names say no more.

    Args:
      labels: of a model.
      classes, saved: as in `known`.
    """
    names = known(classes, saved)
    return ['no class' if label < 0 else _title(label, names) for label in labels]


def _title(label, names):
    name = printable(names[label]) if names else str(label)
    if name == str(label):
        return name
    return f'{label} {name!r}' if name.isdigit() else f'{label} {name}'


def file_names(labels: Iterable[int], classes: int, saved: Sequence[str] = ()) -> list[str]:
    """Parts of names of files, in the order of the labels: '0207_golden_retriever', '0003'."""
    names = known(classes, saved)
    return ['null' if label < 0 else f'{label:04}{_part(label, names)}' for label in labels]


def _part(label, names):
    if not names or names[label] == str(label):
        return ''
    words = re.sub(r'[^\w.-]+', '_', printable(names[label])[:_LONGEST]).strip('_.')
    return f'_{words}' if words else ''


def chosen(text: str, names: Sequence[str], classes: int) -> list[int | str | None]:
    """What '3', '1,5', '0-9', 'cat,dog', 'name:7' or 'none', or a mix of them, stands for.

    A number is a label, 'none' the null class; 'name:7' and 'name:none' are the classes that are
    called so. Names with commas in them are found, too.

    Args:
      text: of a flag.
      names: of `known`, and those that were saved.
      classes: how many there are.

    Raises:
      UserError: a range is reversed or goes too far, or a part is empty.
    """
    parts, at, found = text.split(','), 0, []
    lower = {name.lower() for name in names}
    while at < len(parts):
        numbers = re.fullmatch(r'\s*(\d+)\s*(?:-\s*(\d+)\s*)?', parts[at])
        if numbers:
            low, high = int(numbers[1]), int(numbers[2] or numbers[1])
            if high < low:
                raise UserError(f'--classes: the range {parts[at].strip()} is reversed')
            if high >= classes:  # before a list of so many is made
                called = f'; name:{high} is the class that is called so' * (str(high) in lower)
                raise UserError(
                    f'--classes: there is no class {high}, only 0 to {classes - 1}{called}'
                )
            found += range(low, high + 1)
            at += 1
            continue
        ends = range(len(parts), at, -1)
        joined = lambda end: ','.join(parts[at:end]).strip().removeprefix('name:')  # noqa: B023
        stop = next((end for end in ends if joined(end).lower() in lower), at + 1)
        name = joined(stop)
        if not name:
            raise UserError(
                f"--classes must look like '3', '1,5', '0-9' or 'cat,dog', not {text!r}"
            )
        found.append(None if parts[at].strip() == 'none' else name)
        at = stop
    return found


def in_another_order(names: Sequence[str]) -> str:
    """A line to warn by, where names are numbers but not those of their labels; else ''."""
    other = [(i, name) for i, name in enumerate(names) if name.isdecimal() and int(name) != i]
    if not other:
        return ''
    shown = ', '.join(f'label {i} is called {name}' for i, name in other[:3])
    return (
        f'classes are called like numbers that are not their labels ({shown}'
        f'{", ..." * (len(other) > 3)}): numbers are labels here, name:{other[0][1]} is a name'
    )
