"""Files of examples as people have them, read into lists of objects by split.

JSON (an object with splits, one list, or columns), JSONL, CSV, TSV, Parquet, a folder with a file a split, or a data
set of the Hugging Face Hub. Text is UTF-8 or UTF-16, with or without a byte-order mark. Values are left as they are; a
missing one of CSV, Parquet or the Hub is a missing field.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from modelswarms_fast.errors import InputError, short
from modelswarms_fast.errors.files import read_bytes

KNOWN_SPLITS = ("train", "training", "dev", "val", "valid", "validation", "test")
"""Names that files give their splits. A later one is the likelier to be for testing."""
LARGEST = 1 << 32
"""Bytes of a file of examples: 4 GiB."""
HUB = "hf:"
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")

_LETTERS = string.ascii_uppercase
_REMEDY = "give JSON, JSONL, CSV, TSV or Parquet"

Split = tuple[list[Any], list[str]]
"""Examples, and what a message calls each."""


@dataclass(frozen=True)
class Found:
    """What files hold."""

    path: str
    """What a message calls them."""
    dataset: str
    """A name for the data, where they say none."""
    form: str
    splits: dict[str, Callable[[], Split]]
    """By the name that the file gives; "" for the only one of a file without splits."""
    beside: dict[str, Any] = field(default_factory=dict)
    """What stands beside the splits of a JSON object."""


def read_files(paths: Sequence[Path]) -> Found:
    """What a file, a folder, a data set of the Hub, or several files of one split each hold. Raises InputError."""
    if len(paths) > 1:
        return _parts(paths, ", ".join(map(str, paths)), paths[0].absolute().parent.name)
    path = paths[0]
    if str(path).startswith(HUB):
        return _read_hub(str(path))
    return _read_folder(path) if os.path.isdir(path) else _read_file(path)


def split_of(path: Path) -> str | None:
    """The split that a file's name speaks of, as in sums_dev.jsonl or train-00000-of-00001.parquet."""
    found = {word for word in re.split(r"[^a-z]+", path.stem.lower()) if word in KNOWN_SPLITS}
    return found.pop() if len(found) == 1 else None


def _found(path: Path, form: str, splits: Mapping[str, Split], beside: dict[str, Any] | None = None) -> Found:
    name = path.stem.encode(errors="backslashreplace").decode()
    return Found(str(path), name, form, _given(splits), beside or {})


def _given(splits: Mapping[str, Split]) -> dict[str, Callable[[], Split]]:
    return {name: partial(lambda split: split, split) for name, split in splits.items()}


def _read_file(path: Path) -> Found:
    try:
        data = read_bytes(path, LARGEST)
    except OSError as error:
        reason = error.strerror or short(error)
        raise InputError(f"cannot read {path}: {reason}; {_REMEDY}, a folder of it, or hf:NAME") from error
    if path.suffix == ".parquet" or data[:4] == b"PAR1":
        return _read_parquet(path)
    try:
        text = data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is neither UTF-8 nor UTF-16 ({short(error)}), so it is not JSON or CSV; {_REMEDY}"
        ) from None
    if path.suffix in (".csv", ".tsv"):
        return _read_table(path, text)
    return _read_json(path, text)


# JSON


def _read_json(path: Path, text: str) -> Found:
    by_line = path.suffix in (".jsonl", ".ndjson")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not by_line or (lines and not _is_object(lines[0][1])):
        try:
            content = parse_json(text, str(path))
        except InputError:
            if not by_line and not (len(lines) > 1 and _is_object(lines[0][1])):
                raise
        else:
            return _found(path, *_shape(path, content))
    rows = [parse_json(line, f"{path}: line {number}", "correct the line") for number, line in lines]
    for (number, _), row in zip(lines, rows, strict=True):
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number} is not a JSON object; give an example a line")
    return _found(path, "JSONL", {"": (rows, [f"{path}: line {number}" for number, _ in lines])})


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def parse_json(text: str, where: str, remedy: str = _REMEDY) -> Any:
    """The value of a JSON text. Raises InputError, for a key that stands twice and for NaN and infinities too."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) < len(found):
            names = [name for name, _ in found]
            twice = next(name for name in names if names.count(name) > 1)
            shown = json.dumps(made)[:80]
            raise InputError(f'{where}: the key "{twice}" stands twice in an object ({shown}); one is lost, rename it')
        return made

    def constant(name: str) -> Any:
        raise InputError(f"{where} holds {name}, which JSON does not have; correct the value or leave its field out")

    def number(digits: str) -> float:
        return value if math.isfinite(value := float(digits)) else constant(digits)

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({short(error)}); {remedy}") from error


def _shape(path: Path, content: Any) -> tuple[str, dict[str, Split], dict[str, Any]]:
    """Of a JSON file's content the form in words, the splits and what stands beside them."""
    if isinstance(content, list):
        return "JSON, one list", {"": (content, [f"{path}: example {index}" for index in range(len(content))])}, {}
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object or list; {_REMEDY}")
    known = {name for name, value in content.items() if name.lower() in KNOWN_SPLITS and isinstance(value, list | dict)}
    lists = {name for name, value in content.items() if value and _are_objects(value)}
    columns = _columns(path, content) if not known else None
    if columns is not None:
        rows = _transposed(columns)
        return "JSON, columns", {"": (rows, [f"{path}: example {index}" for index in range(len(rows))])}, {}
    names = [name for name in content if name in known | lists]
    if not names:
        raise InputError(f'{path} holds no examples; give the lists "dev" and "test", or one list')
    splits, form = {}, "JSON"
    for name in names:
        rows = content[name]
        if (found := _columns(f'{path}: "{name}"', rows)) is not None:
            rows, form = _transposed(found), "JSON, columns"
        if not isinstance(rows, list):
            raise InputError(f'{path}: the split "{name}" is no list; give a list of at least one example')
        splits[name] = rows, [f"{path}: {name} example {index}" for index in range(len(rows))]
    return form, splits, {name: value for name, value in content.items() if name not in names}


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _columns(where: object, content: Any) -> dict[str, list[Any]] | None:
    """By name the columns of a table, as lists or as pandas writes them ({"0": …, "1": …}); None if it is none."""
    if not isinstance(content, dict):
        return None
    found: dict[str, list[Any]] = {}
    for name, value in content.items():
        if isinstance(value, dict) and value and list(value) == [str(index) for index in range(len(value))]:
            value = list(value.values())
        if isinstance(value, list):
            found[name] = value
    objects = [value for value in found.values() if _are_objects(value)]
    if len(found) - len(objects) < (2 if objects else 1):  # lists of examples
        return None
    if len({len(value) for value in found.values()}) > 1:
        lengths = ", ".join(f"{name} {len(value)}" for name, value in found.items())
        raise InputError(f"{where} has columns of unequal lengths ({lengths}); give one value an example in each")
    return found


def _transposed(columns: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Examples of columns; a missing value is a missing field."""
    return [
        {name: value for name, value in zip(columns, row, strict=True) if value is not None}
        for row in zip(*columns.values(), strict=True)
    ]


# Tables


def _read_table(path: Path, text: str) -> Found:
    csv.field_size_limit(2**31 - 1)  # a long text is no mistake
    first = text.partition("\n")[0]
    # Of one column there is no delimiter, and none of these in its texts is one.
    delimiter = "\t" if path.suffix == ".tsv" else max("\x1f,;\t", key=first.count)
    reader, rows, lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [], []
    try:
        last = 0
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                lines.append(last + 1)
            last = reader.line_num
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num} is not CSV ({short(error)}); correct its quotes") from error
    form = "TSV" if path.suffix == ".tsv" else "CSV"
    if _is_headless(rows):
        header, form = ["question", *_LETTERS[: len(rows[0]) - 2], "answer"], f"{form} without a header"
    elif rows:
        header, lines = [name.strip() for name in rows.pop(0)], lines[1:]
    else:
        header = []
    for name in header:
        if name and header.count(name) > 1:
            raise InputError(f'{path}: the column "{name}" stands twice; rename one')
    examples = []
    for line, row in zip(lines, rows, strict=True):
        if len(row) > len(header):
            raise InputError(f"{path}: line {line} has {len(row)} cells for {len(header)} columns; quote its texts")
        cells = zip(header, row, strict=False)
        examples.append({name: cell for name, cell in cells if name and cell.strip()})
    return _found(path, form, {"": (examples, [f"{path}: line {line}" for line in lines])})


def _is_headless(rows: Sequence[Sequence[str]]) -> bool:
    """Whether these are the files of MMLU: question, choices, and the letter of the right one, without a header."""
    width = len(rows[0]) if rows else 0
    keys = _LETTERS[: max(width - 2, 0)]
    return 4 <= width <= 28 and all(len(row) == width and len(row[-1]) == 1 and row[-1] in keys for row in rows)


def _read_parquet(path: Path) -> Found:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(f"{path} is Parquet, which needs pyarrow; install modelswarms-fast[data]") from error
    try:
        with parquet.ParquetFile(path) as file:
            rows = [_plain(row) for row in file.read().to_pylist()]
    except Exception as error:  # whatever a damaged file makes Arrow raise
        raise InputError(f"{path} is not Parquet ({_reason(error)}); write it again") from error
    _whole_numbers(rows)
    return _found(path, "Parquet", {"": (rows, [f"{path}: row {index}" for index in range(len(rows))])})


def _plain(value: Any) -> Any:
    """A value of Arrow's in JSON's types; what is missing (null, NaN), and bytes, are no fields of an object."""
    if isinstance(value, dict):
        kept = {name: _plain(one) for name, one in value.items()}
        return {name: one for name, one in kept.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bytes) or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, str | int | float) else str(value)


def _whole_numbers(rows: list[dict[str, Any]]) -> None:
    """Make whole numbers of a column of them that pandas has made 7.0, because a value was missing once."""
    for name in {name for row in rows for name, value in row.items() if isinstance(value, float)}:
        if all(isinstance(row[name], float) and row[name].is_integer() for row in rows if name in row):
            for row in rows:
                if name in row:
                    row[name] = int(row[name])


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# Several files, and the Hub


def _read_folder(path: Path) -> Found:
    files = _files(path) or _files(path / "data")
    if any(map(split_of, files)):
        return _parts([file for file in files if split_of(file)], str(path), path.absolute().name)
    if len(files) != 1:
        what = f"{len(files)} data files, none of them named after a split" if files else "no data file"
        raise InputError(f"{path} holds {what}; give a file, or a folder with dev.jsonl and test.jsonl")
    return _read_file(files[0])


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES) if folder.is_dir() else []


def _parts(paths: Iterable[Path], name: str, dataset: str) -> Found:
    """Files of one split each; those of the same split follow one another."""
    splits: dict[str, Split] = {}
    forms = []
    for path in paths:
        split, found = str(split_of(path)), _read_file(path)
        if len(found.splits) != 1:
            raise InputError(f"{path} is for {split} but has {len(found.splits)} splits itself; give it alone")
        rows, where = next(iter(found.splits.values()))()
        before = splits.get(split, ([], []))
        splits[split] = before[0] + rows, before[1] + where
        forms.append(found.form)
    return Found(name, dataset, f"{' + '.join(dict.fromkeys(forms))}, a file a split", _given(splits))


def _read_hub(name: str) -> Found:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{name} needs the package datasets; install modelswarms-fast[data]") from error
    repository, _, config = name.removeprefix(HUB).partition(":")
    try:
        loaded: Any = datasets.load_dataset(repository, config or None)
    except Exception as error:  # of a network, a name, a config, a script
        raise InputError(
            f"{name} cannot be loaded ({_reason(error)}); correct the name, see that the Hub can be reached, or give "
            "a file"
        ) from error
    splits: dict[str, Callable[[], Split]]
    splits = {str(split): partial(_hub_split, name, str(split), one) for split, one in loaded.items()}
    return Found(name, repository.rstrip("/").rpartition("/")[2], "Hub", splits)


def _hub_split(name: str, split: str, loaded: Any) -> Split:
    """Examples of a split, labels by their names."""
    labels = {one: feature.names for one, feature in loaded.features.items() if hasattr(feature, "names")}
    try:
        rows = [_plain(row) for row in loaded.to_list()]
    except Exception as error:  # images and sounds are decoded
        raise InputError(f"{name}: the split {split} cannot be read ({_reason(error)}); give a file") from error
    _whole_numbers(rows)
    for row in rows:
        for column, names in labels.items():
            if column in row:
                number = row.pop(column)
                row |= {column: names[number]} if 0 <= number < len(names) else {}
    return rows, [f"{name}: {split} example {index}" for index in range(len(rows))]
