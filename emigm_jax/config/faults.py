"""What is wrong with a config file, and in which line, for a message of one line."""

import pathlib
import re
import traceback

from emigm_jax.errors import UserError

_LONGEST = 300  # characters of a message
# ml_collections lists all names where one is unknown.
_OTHERS = re.compile(r'Other fields present: ".*?"$', re.DOTALL | re.MULTILINE)


def message(error: BaseException) -> str:
    """What an exception says: its kind, unless it is ours or says all itself, and its words."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, (AttributeError, KeyError)):  # which quote what they say
        text = text.replace("\\'", "'").replace('\\n', '\n')
        text = _OTHERS.sub('', text[1:-1] if text[:1] == text[-1:] else text)
    if 'Traceback (most recent call last)' in text:
        text = text.strip().rpartition('\n')[2]
    text = ' '.join(text.split())[:_LONGEST]
    if isinstance(error, (UserError, ValueError)) and not isinstance(error, UnicodeError):
        return text
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


def place(file: str, error: BaseException, called: object) -> str:
    """' (FILE, line N)' where the code of a config file raised an exception.

    Args:
      file: as it was compiled.
      error: as it was caught.
      called: its function that was called; None: it was not yet defined.
    """
    if isinstance(error, SyntaxError) and error.filename == file:
        return _shown(file, error.lineno)
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    if lines:
        return _shown(file, lines[-1])
    code = getattr(called, '__code__', None)
    return _shown(file, code and code.co_firstlineno)  # it could not even be called


def mention(file: str, reason: str) -> str:
    """' (FILE, line N)' of the last line that sets what a reason begins with; else the file."""
    named = re.match(r'(?:unknown setting )?((?:\w+\.)*(\w+))', reason)
    lines = pathlib.Path(file).read_text(errors='replace').splitlines()
    for name in named.groups() if named else ():
        sets = re.compile(rf'(?<!\w){re.escape(name)}\b[\'"]?\s*(=|:|,)(?!=)')
        found = [number for number, line in enumerate(lines, 1) if sets.search(line)]
        if found:
            return _shown(file, found[-1])
    return _shown(file, None)


def _shown(file, line):
    return f' ({file}, line {line})' if line else f' ({file})'
