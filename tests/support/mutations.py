"""What happens to files: bytes that change, and well-formed files that say something else."""

import io
import json
import zipfile

# What stands in the place of a value of JSON. The numbers are text, as JSON bounds none.
VALUES = (
    *('null', 'true', '0', '-1', '1', '0.5', '2147483648', '99999999999', '-9223372036854775809'),
    *('9223372036854775807', '1' + '0' * 25, '9' * 5000, '1e999', '-1e999', 'NaN', '""', '"O"'),
    *('"../../x"', '"/etc/passwd"', '"\\u001b[31mred\\n"', '"\\ud800"', '"' + 'x' * 5000 + '"'),
    *('[]', '{}', '[null]', '[[]]', '{"":{}}', '[-1,-1]', '[1000000,1000000]', '["O",">f8"]'),
    *('[' * 200 + ']' * 200, '[' * 20000 + ']' * 20000, '{"a":' * 200 + '1' + '}' * 200),
    *('"float64"', '">f4"', '"f4,O"', '"V8"', '[1,1]', '[0]', '1e300'),
)
_HOLE = '\N{REPLACEMENT CHARACTER}hole'


def mutated(content, rng, name=''):
    """The bytes of a file of that name, changed in one way or several."""
    kinds = [changed]
    if content[:1] in (b'{', b'['):
        kinds += [other_value] * 3
    if content[:4] == b'PK\x03\x04':
        kinds += [other_member] * 3
    if content[8:9] == b'{' and name.endswith('.safetensors'):
        kinds += [other_header] * 3
    return kinds[rng.integers(len(kinds))](content, rng)


def changed(content, rng):
    """One to four times: bytes are set, taken out, put in, doubled, or the rest is lost."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(content) + 1) * rng.random() ** rng.integers(3))
        stop = at + int(rng.integers(1, 9))
        match rng.integers(7):
            case 0:
                content[at : at + 1] = rng.bytes(1)
            case 1:
                content[at:stop] = (b'\xff' * 8, b'\0' * 8, b'\x7f' * 8)[rng.integers(3)][
                    : stop - at
                ]
            case 2:
                del content[at:stop]
            case 3:
                content[at:at] = rng.bytes(stop - at)
            case 4:
                content[at:at] = content[at : at + 64] * int(rng.integers(1, 50))
            case 5:
                content[at:stop] = b'9' * (stop - at)
            case 6:
                del content[at:]
    return bytes(content)


def other_value(content, rng):
    """JSON, a line of it or all, in which a value, a name or a whole entry is another."""
    lines = content.split(b'\n')
    try:
        tree, where = json.loads(content), None
    except ValueError:
        where = int(rng.integers(len(lines)))
        try:
            tree = json.loads(lines[where])
        except ValueError:
            return changed(content, rng)
    places = list(_places(tree))
    if not places:
        return changed(content, rng)
    group, key = places[rng.integers(len(places))]
    match rng.integers(6):
        case 0:
            del group[key]
        case 1 if isinstance(group, dict):
            group[json.loads(VALUES[19 + rng.integers(2)])] = group.pop(key)
        case 2:
            other, name = places[rng.integers(len(places))]
            group[key] = json.loads(json.dumps(other[name] if name in _keys(other) else None))
        case _:
            group[key] = _HOLE
    value = VALUES[rng.integers(len(VALUES))]
    text = json.dumps(tree).replace(json.dumps(_HOLE), value).encode()
    if where is None:
        return text
    lines[where] = text
    return b'\n'.join(lines)


def _keys(group):
    return group if isinstance(group, dict) else range(len(group))


def _places(tree):
    for key in list(_keys(tree)) if isinstance(tree, (dict, list)) else ():
        yield tree, key
        yield from _places(tree[key])


def other_member(content, rng):
    """A zip archive, with right checksums, in which a member is changed, left out or renamed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = int(rng.integers(len(members)))
    name, inside = members[at]
    match rng.integers(6):
        case 0:
            del members[at]
        case 1:
            members[at] = f'..\x1b/{name}', inside
        case 2:
            members.append((f'{name}.npy', inside))
        case _:
            members[at] = name, changed(inside[:600], rng) + inside[600:]
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', methods[rng.integers(4)]) as archive:
        for name, inside in members:
            archive.writestr(name, inside)
    return file.getvalue()


def other_header(content, rng):
    """safetensors with another header, whose length is right."""
    end = 8 + int.from_bytes(content[:8], 'little')
    header = other_value(content[8:end], rng)
    return len(header).to_bytes(8, 'little') + header + content[end:]
