"""A user's own network: a file of Python, and the function in it that builds the network.

`nets/mine.py:build` names both. The file travels with the run by its digest, which is part of the
trial: a changed file makes other trials. It is read and parsed here, and run by `training.own`.
Standard library only, so that a grid is checked without torch.
"""

from __future__ import annotations

import ast
import hashlib
import io
import posixpath
import re
import sys
import tokenize
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from harness.study.errors import GridError
from harness.study.wording import did_you_mean

MAX_BYTES = 2**20
"""Of a file; it travels to every worker."""

_NAME = re.compile(r"(?P<file>[^\s,:=][^,:=\x00-\x1f]*\.py):(?P<function>[^\W\d]\w*)")
"""Without what separates things on a command line: ',' and '='."""

_sources: dict[str, str] = {}
"""Digest -> text of each file that this process has come by: a digest can be unknown, never wrong."""


def is_own(architecture: str) -> bool:
    """Does this name a function in a user's file?"""
    return _NAME.fullmatch(architecture) is not None


def split_name(architecture: str) -> tuple[str, str]:
    """The file and the function that `architecture` names.

    >>> split_name("nets/mine.py:build")
    ('nets/mine.py', 'build')
    """
    match = _NAME.fullmatch(architecture)
    assert match, architecture
    return match["file"], match["function"]


def tidy_name(architecture: str) -> str:
    r"""Spell the same name in one way: equal names, equal trials.

    >>> tidy_name("./nets//mine.py:build"), tidy_name(r"nets\mine.py:build")
    ('nets/mine.py:build', 'nets/mine.py:build')
    """
    file, function = split_name(architecture)
    return f"{posixpath.normpath(file.replace(chr(92), '/'))}:{function}"


def read_network(architecture: str, folder: Path) -> str:
    """Read the file that `architecture` names, relative to `folder`; returns its digest.

    `recall` then has its text.

    Raises:
        GridError: there is no such file, it is not Python, or it has no such function.
    """
    file, function = split_name(architecture)
    path = folder / file
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise GridError([f"{path} is not a file"])
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise GridError([f"{path} is larger than {MAX_BYTES:,} bytes, which no network needs"])
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        source = content.decode(encoding)
        tree = ast.parse(source, file)
    except OSError as error:
        raise GridError([f"{path} cannot be read: {error.strerror}"]) from error
    except SyntaxError as error:
        raise GridError([f"{file}:{error.lineno or 1}: {error.msg}"]) from error
    except (ValueError, RecursionError, MemoryError) as error:  # no UTF-8, a null byte, a riddle
        raise GridError([f"{path} is not Python: {error or type(error).__name__}"]) from error
    if function not in set(_list_names(tree)):
        found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        has = f"it has {', '.join(found) or 'none'}"
        hint = did_you_mean(function, found)
        raise GridError([f"{file} has no function {function!r} at its top level; {has}{hint}"])
    for line, module in _list_imports(tree):
        if _lies_beside(module, path.parent, folder, Path.cwd()):
            text = f"{file}:{line}: imports {module}, which lies beside it: only this one file"
            raise GridError([f"{text} travels to the workers; put all it needs into it"])
    return remember(source)


def digest_source(source: str) -> str:
    """16 hex digits of the bytes of a file."""
    return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()


def remember(source: str) -> str:
    """Keep the text of a file for `recall` in this process; returns its digest."""
    digest = digest_source(source)
    _sources[digest] = source
    return digest


def recall(digest: str) -> str | None:
    """The text of the file with this digest; None where this process has not come by it."""
    return _sources.get(digest)


def _list_names(tree: ast.Module) -> Iterator[str]:
    """What the top level of a file binds, inside `if` and `try` too."""
    for node in _walk_top(tree):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.ImportFrom():
                yield from (alias.asname or alias.name for alias in node.names)
            case _:
                pass


def _walk_top(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
        ):
            yield from _walk_top(child)


def _lies_beside(module: str, parent: Path, *folders: Path) -> bool:
    """Does Python find it beside the file, or in one of the folders but not installed there?"""
    name = module.partition(".")[0]
    beside = parent / name
    if name == "harness":
        return False
    if module.startswith(".") or beside.is_dir() or beside.with_suffix(".py").is_file():
        return True
    if name in sys.stdlib_module_names:
        return False
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return False
    places = [spec.origin or "", *(spec.submodule_search_locations or ())] if spec else []
    return any(
        Path(place).is_relative_to(folder.resolve())
        and not {"site-packages", "dist-packages"} & {*Path(place).parts}
        for place in places
        for folder in folders
    )


def _list_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="import_module" | "__import__")
                | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield node.lineno, module
            case _:
                pass
        if isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
