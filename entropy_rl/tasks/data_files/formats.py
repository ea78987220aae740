"""File formats of data sets: JSONL, compressed or not, parquet, and Arrow as `datasets` writes it.

The first bytes of a file tell its format. pyarrow is imported for the files that need it.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

_BATCH = 8192  # rows that are converted to Python objects at a time
_MAGIC = (
    (b"PAR1", "parquet"),
    (b"ARROW1", "Arrow file"),
    (b"\xff\xff\xff\xff", "Arrow stream"),
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"PK\x03\x04", "zip"),
)
_COMPRESSED = ("gzip", "zstd", "bzip2", "xz")
_BY_NAME = {".parquet": ("parquet",), ".arrow": ("Arrow stream", "Arrow file")}
_DAMAGED = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, NotImplementedError)


def format_of(path: Path) -> str:
    """Return the format of a file by its first bytes; `JSONL` where they are those of none.

    Raises:
      ValueError: If the file has the suffix of another format, or is an archive.
    """
    with path.open("rb") as file:
        found = _sniff(file.read(8))
    by_name = _BY_NAME.get(path.suffix, (found,))
    if found not in by_name:
        article = "an" if path.suffix == ".arrow" else "a"
        raise ValueError(
            f"{path}: must be {article} {path.suffix[1:]} file, as its name says, got other content"
        )
    if found == "zip":
        raise ValueError(f"{path}: must be JSONL, parquet or Arrow, got a zip archive; unpack it")
    return found


def file_rows(
    path: Path, fields: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over the rows of one file.

    Args:
      path: The file.
      fields: Columns to read from a parquet file; None for all.

    Yields:
      The location, `FILE:LINE` or `FILE: row N` counted from 1, and the row.

    Raises:
      ValueError: If a row or the file cannot be read.
    """
    kind = format_of(path)
    if kind == "JSONL" or kind in _COMPRESSED:
        for number, line in _lines(path, kind):
            if line.strip():
                try:
                    row = _parse(line, number)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: {error}") from error
                yield f"{path}:{number}", row
        return
    for number, row in enumerate(_table_rows(path, kind, fields), 1):
        yield f"{path}: row {number}", row


def file_count(path: Path) -> int:
    """Count the rows of a file; for JSONL its lines."""
    kind = format_of(path)
    if kind == "parquet":
        return _open_parquet(path).metadata.num_rows
    if kind.startswith("Arrow"):
        return sum(batch.num_rows for batch in _arrow_batches(path, kind))
    if kind in _COMPRESSED:
        return sum(1 for _ in _lines(path, kind))
    lines, end = 0, b"\n"
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            lines, end = lines + block.count(b"\n"), block[-1:]
    return lines + (end != b"\n")


def column_names(path: Path) -> list[str] | None:
    """Return the column names of a parquet or Arrow file; None for JSONL."""
    kind = format_of(path)
    if kind == "parquet":
        return list(_open_parquet(path).schema_arrow.names)
    if kind.startswith("Arrow"):
        with _open_arrow(path, kind) as reader:
            return list(reader.schema.names)
    return None


def _sniff(start: bytes) -> str:
    return next((kind for magic, kind in _MAGIC if start.startswith(magic)), "JSONL")


# --------------------------------------------------------------------------------------------------
# JSONL
# --------------------------------------------------------------------------------------------------


def _lines(path: Path, kind: str) -> Iterator[tuple[int, bytes]]:
    """Iterate over the lines of a text file, decompressed, with their numbers."""
    number = 0
    try:
        # Bytes, so that an invalid one is reported with its line.
        with _open_text(path, kind) as file:
            if kind in _COMPRESSED and (inside := _sniff(file.peek(8)[:8])) != "JSONL":
                raise ValueError(f"{path}: must be JSONL where it is compressed, got {inside}")
            for number, line in enumerate(file, 1):
                yield number, line
    except _DAMAGED as error:
        if kind == "JSONL" or str(error).startswith(f"{path}: "):
            raise
        raise _damaged(path, f"{kind} file", error, f" after line {number}") from error


def _open_text(path: Path, kind: str) -> Any:
    if kind == "gzip":
        return gzip.open(path, "rb")
    if kind == "bzip2":
        return bz2.open(path, "rb")
    if kind == "xz":
        return lzma.open(path, "rb")
    if kind == "zstd":
        return io.BufferedReader(_ZstdFile(path), 1 << 20)
    return path.open("rb")


class _ZstdFile(io.RawIOBase):
    """A zstd file of any number of frames; one that ends within a frame is an error."""

    def __init__(self, path: Path):
        pyarrow = import_pyarrow(path)
        self._compressed: IO[bytes] = path.open("rb")
        self._stream = pyarrow.CompressedInputStream(self._compressed, "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._stream.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._compressed.close()
        super().close()


def _parse(line: bytes, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        found = _other_format(line, number) or f"an invalid byte at {error.start + 1}"
        raise ValueError(f"must be UTF-8 text, got {found}") from error
    except _RepeatedError as error:
        raise ValueError(f"must be a JSON object with each key once, got {error} twice") from error
    except (ValueError, RecursionError) as error:
        found = _other_format(line, number) or f"invalid JSON ({error})"
        raise ValueError(f"must be one JSON object per line, got {found}") from error
    if not isinstance(row, dict):
        found = _other_format(line, number) or type(row).__name__
        raise ValueError(f"must be one JSON object per line, got {found}")
    return row


class _RepeatedError(ValueError):
    """A key is in an object twice; its message is the key."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _RepeatedError(repr(next(name for name, count in counts.items() if count > 1)))
    return found


def _other_format(line: bytes, number: int) -> str | None:
    """Name the format of a line that is no JSON object, with a remedy; None if it is not known."""
    text = line.strip()
    if line.startswith((b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{")):
        return "UTF-16; `iconv -f UTF-16 -t UTF-8` converts it"
    if b"}\r{" in text:
        return "lines that end in CR alone; `tr '\\r' '\\n'` converts them"
    if text.startswith(b"["):
        return "a JSON array; `jq -c '.[]'` writes its objects, one per line"
    if text == b"{":
        return "an object over several lines; `jq -c .` writes it in one"
    if number == 1 and text[:1] not in (b"{", b"") and (b"," in text or b"\t" in text):
        kind = "TSV" if b"\t" in text else "CSV"
        writer = "`to_json(FILE, orient='records', lines=True)` of pandas"
        return f"what looks like {kind}; {writer} writes JSONL"
    return None


# --------------------------------------------------------------------------------------------------
# Parquet and Arrow
# --------------------------------------------------------------------------------------------------


def import_pyarrow(path: Path) -> Any:
    """Import pyarrow, which is slow.

    Raises:
      ValueError: If it is not installed; the message names the file that needs it.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"{path}: must be read with pyarrow, which cannot be imported ({error}); "
            "`pip install pyarrow` installs it"
        ) from error
    return pyarrow


def _table_rows(path: Path, kind: str, fields: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    number, name = 0, "parquet file" if kind == "parquet" else kind
    try:
        if kind == "parquet":
            batches = _open_parquet(path).iter_batches(_BATCH, columns=fields, use_threads=False)
        else:
            batches = _arrow_batches(path, kind)
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH):
                for row in batch.slice(start, _BATCH).to_pylist():
                    number += 1
                    yield row
    except _DAMAGED as error:
        # Only errors of pyarrow arrive here: those of the consumer are raised outside.
        if str(error).startswith(f"{path}: "):
            raise
        raise _damaged(path, name, error, f" after row {number}") from error


def _arrow_batches(path: Path, kind: str) -> Iterator[Any]:
    with _open_arrow(path, kind) as reader:
        if kind == "Arrow file":
            yield from map(reader.get_batch, range(reader.num_record_batches))
        else:
            yield from reader


@contextlib.contextmanager
def _open_arrow(path: Path, kind: str) -> Iterator[Any]:
    pyarrow = import_pyarrow(path)
    with pyarrow.memory_map(str(path)) as source:
        try:
            ipc = pyarrow.ipc
            reader = ipc.open_file(source) if kind == "Arrow file" else ipc.open_stream(source)
        except (OSError, ValueError) as error:
            raise _damaged(path, kind, error) from error
        with reader:
            yield reader


def _open_parquet(path: Path) -> Any:
    pyarrow = import_pyarrow(path)
    try:
        # Without read-ahead: a row group may be the whole file.
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except (OSError, ValueError) as error:
        raise _damaged(path, "parquet file", error) from error


def _damaged(path: Path, kind: str, error: BaseException, after: str = "") -> ValueError:
    reason = (str(error) or type(error).__name__).partition("\n")[0]
    return ValueError(f"{path}: must be a complete {kind}, got an error{after} ({reason})")
