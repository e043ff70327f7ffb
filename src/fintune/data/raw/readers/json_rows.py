"""Read JSON lines, JSON lists, and lists inside a JSON document, as numbered rows.

A path such as `data.items[].headline` locates a value: `[]` stands for each item of a list, and the items of
the last list are the rows.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from fintune.data.raw.readers.streams import After, Readable, json_items, lines
from fintune.errors import DataError

LINES = ""
"""The place of rows that are lines; for other files it is ijson's prefix, such as `data.item`."""
LIST = "item"
Value = tuple[int | str, dict[str, Any] | str]
"""The number of a line or item, plus a row number if it holds several; and the row, or why there is none."""
LONGEST = 2**24
"""The most characters of a line that may be an object of JSON lines."""
_NOT_AN_OBJECT = "it is not a JSON object"


class _Once(dict[str, Any]):
    """An object that remembers a duplicate name."""

    twice = ""

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self:
            self.twice = name
        super().__setitem__(name, value)


def at(value: Any, path: str) -> Any:
    """The value at a path of names (`payload.headline`) in an object; None if there is none."""
    for name in path.split(".") if path else ():
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def place_of(file: Readable, suffix: str, encoding: str, paths: Collection[str] = ()) -> tuple[str, str]:
    """The place of a file's rows, and a note on it; with `paths`, a document's rows are where these say.

    Raises:
        DataError: it is one document that contains no list of objects, or more than one.
    """
    with io.TextIOWrapper(file.open(), encoding) as stream:
        first = _next_line(stream)
        if first.startswith("["):
            return LIST, "" if suffix == ".json" else "holds a JSON list"
        if suffix != ".json":
            return LINES, ""
        first += "" if first.endswith("\n") else stream.readline(LONGEST)
        several = _next_line(stream).startswith("{")
    try:
        value = json.loads(first)
    except ValueError:
        value = None
    if isinstance(value, dict) and (several or not any(isinstance(v, dict | list) for v in value.values())):
        return LINES, "holds JSON lines"
    return (LIST, "") if paths else _only_list(file, encoding)


def _next_line(stream: io.TextIOWrapper) -> str:
    """The beginning of the next line that is not blank (a whole list may be one long line); "" at the end."""
    while (line := stream.readline(64)).isspace():
        pass
    return line.lstrip()


def _only_list(file: Readable, encoding: str) -> tuple[str, str]:
    import ijson

    found: dict[str, None] = {}
    array = inside = ""
    try:
        with utf8(file, encoding) as stream:
            for prefix, event, _ in ijson.parse(After(stream.read(3).removeprefix(b"\xef\xbb\xbf"), stream)):
                if inside:
                    inside = "" if (prefix, event) == (inside, "end_array") else inside
                elif event == "start_map" and array and prefix == f"{array}.item":
                    found[prefix] = None
                    inside = array
                array = prefix if event == "start_array" else ""
    except (ijson.JSONError, UnicodeDecodeError) as error:
        why = str(error).strip().partition("\n")[0]
        raise DataError(f"{file.shown} is not valid JSON ({why}): write a list of objects.") from None
    names = [prefix.removesuffix(".item") + "[]" for prefix in found]
    if not found:
        raise DataError(
            f"{file.shown} does not hold a JSON list of objects: write a list of objects, or one per line "
            '(in pandas: to_json(path, orient="records")).'
        )
    if len(found) > 1:
        several = f"{file.shown} holds several lists of objects ({', '.join(names)})"
        raise DataError(
            f"{several}: say in the recipe which has the rows, such as  columns: {{text: {names[0]}.text}}",
            f"{several}: save the one with the rows as a separate file.",
        )
    return next(iter(found)), f"has its rows at {names[0]}"


def utf8(file: Readable, encoding: str) -> Any:
    """A file's bytes in UTF-8, which ijson needs."""
    if encoding == "utf-8-sig":
        return file.open()
    import codecs

    return codecs.EncodedFile(file.open(), "utf-8", encoding)


def rows(
    file: Readable,
    place: str,
    encoding: str,
    paths: Iterable[str] = (),
    begin: int = 0,
    end: int | None = None,
    before: int = 0,
) -> Iterator[Value]:
    """The rows of a file.

    Args:
        place: from `place_of`.
        paths: of columns; for each path with a `[]`, the row has the value there.
        begin, end, before: a piece of a file of lines, and the number of lines before it.

    Raises:
        DataError: the paths lead to different lists.
    """
    levels = _levels(paths)
    columns = {path: path.split("[]") for path in paths if "[]" in path}
    if place == LINES:
        values = _lines(file, encoding, begin, end, before)
    else:
        place = _prefix(levels[0]) if levels else place
        levels = levels[1:]
        values = _items(file, place, encoding)
    outer = 0 if place == LINES else 1
    for number, value in values:
        if isinstance(value, str) or not columns:
            yield number, value
            continue
        for part, chain in enumerate(_chains(value, levels), start=1):
            where = f"{number}.{part}" if levels else number
            if not isinstance(chain[-1], dict):
                yield where, _NOT_AN_OBJECT
                continue
            found = {}
            for path, parts in columns.items():
                found[path] = at(chain[len(parts) - 1 - outer], parts[-1].removeprefix("."))
            yield where, {**chain[-1], **found}


def _levels(paths: Iterable[str]) -> list[str]:
    """The lists along the paths, outermost first."""
    deepest: list[str] = []
    for path in paths:
        own = path.split("[]")[:-1]
        short, long = sorted((own, deepest), key=len)
        if long[: len(short)] != short:
            raise DataError(
                f"The columns lead to different lists ({'[]'.join(short)}[] and {'[]'.join(long)}[]): a row "
                "is an item of one list, or of a list inside it."
            )
        deepest = long
    return [name.removeprefix(".") for name in deepest]


def _prefix(name: str) -> str:
    return f"{name}.item" if name else LIST


def _chains(value: Any, levels: list[str]) -> Iterator[tuple[Any, ...]]:
    """For each item of the innermost list: the objects from the outermost one down to it."""
    if not levels:
        yield (value,)
        return
    inner = at(value, levels[0])
    for item in inner if isinstance(inner, list) else ():
        for chain in _chains(item, levels[1:]):
            yield (value, *chain)


def _lines(file: Readable, encoding: str, begin: int, end: int | None, before: int) -> Iterator[Value]:
    content = lines(file, begin, end, encoding)
    for number, line in enumerate(content, start=before + 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            yield number, f"it is not valid JSON ({error})"
            continue
        except _Twice as error:
            yield number, str(error)
            continue
        yield number, value if isinstance(value, dict) else _NOT_AN_OBJECT


class _Twice(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"it names {twice!r} twice")
    return found


def _items(file: Readable, place: str, encoding: str) -> Iterator[Value]:
    with utf8(file, encoding) as stream:
        items = json_items(stream, file.shown, "write a list of objects", place, _Once)
        for number, value in enumerate(items, start=1):
            if not isinstance(value, dict):
                yield number, _NOT_AN_OBJECT
            else:
                twice = getattr(value, "twice", "")
                yield number, f"it names {twice!r} twice" if twice else value


def columns_of(values: Iterable[Value], wanted: Collection[str], enough: int) -> tuple[list[str], str]:
    """The names in a file's objects, and what was wrong with the first invalid row.

    Objects need not have the same names: more than `enough` are read if a wanted one is missing.
    """
    names: dict[str, None] = {}
    bad = ""
    for count, (number, row) in enumerate(values, start=1):
        if isinstance(row, dict):
            names.update((name, None) for name, value in row.items() if "[]" not in name or value is not None)
        else:
            bad = bad or f": line {number}: {row}"
        if count >= enough and names and all(name in names for name in wanted):
            break
    return list(names), bad


def cell(row: Mapping[str, Any], column: str) -> Any:
    """A row's value in a column, which may be a path inside an object; None if missing."""
    value = row.get(column)
    return at(row, column) if value is None and "." in column else value
