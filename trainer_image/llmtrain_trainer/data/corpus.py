"""Documents out of text, JSON Lines and Parquet files.

Files come in the order of their relative paths and documents in the order of the file, whatever the file system says,
so that every member reads the same corpus. Memory is bounded: a document is handed on in pieces of about
`PIECE_CHARACTERS`, cut at line ends (a longer line, JSON record or Parquet value is held whole).

Text files are taken as they are found, so a directory's odd undecodable one is skipped, counted and named. JSON Lines
and Parquet are made for the purpose: anything wrong in them is an error that names the place.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple, cast

from llmtrain_operator.contract import names
from llmtrain_trainer.errors import TrainerError

Format = Literal["text", "jsonl", "parquet"]

PIECE_CHARACTERS: Final = 64 * 1024
_PARQUET_ROWS: Final = 1024
_NAMED_SKIPS: Final = 5

SUFFIXES: Final[dict[Format, tuple[str, ...]]] = {
    "text": (
        *(".txt", ".text", ".md", ".rst", ".tex", ".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".go", ".rs", ".java"),
        *(".js", ".ts", ".rb", ".sh", ".sql"),
    ),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet", ".pq"),
}
"""What a directory is searched for when `spec.data.include` is empty. Text and JSON Lines may be gzipped (`.gz`)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the corpus; `relative` is its path below the source, with `/`. Size in bytes, time in ns."""

    path: Path
    relative: str
    format: Format
    size: int
    modified_ns: int


class Piece(NamedTuple):
    """A part of a document; `ends` is true for its last part."""

    text: str
    ends: bool


@dataclass(slots=True)
class Corpus:
    """The documents of some files. `skipped` fills up while `pieces` is consumed."""

    files: Sequence[SourceFile]
    text_field: str
    tolerant: bool
    skipped: list[str] = field(default_factory=list)

    def pieces(self) -> Iterator[Piece]:
        """All documents in order. Raises TrainerError naming file, place and remedy."""
        for file in self.files:
            try:
                yield from read_documents(file, self.text_field)
            except _UndecodableTextError as error:
                if not self.tolerant:
                    raise
                self.skipped.append(str(error))
            except OSError as error:
                # A link into nothing is common in source trees; elsewhere it means that a part of the data is missing.
                if not (self.tolerant and file.format == "text" and isinstance(error, FileNotFoundError)):
                    raise _unreadable(file.path, error) from error
                self.skipped.append(str(error))
        self._judge_skipped()

    def _judge_skipped(self) -> None:
        if not self.skipped:
            return
        named = "; ".join(self.skipped[:_NAMED_SKIPS]) + ("; ..." if len(self.skipped) > _NAMED_SKIPS else "")
        if len(self.skipped) == len(self.files):
            raise TrainerError(
                names.REASON_DATA_CORRUPT,
                f"spec.data.source: none of {len(self.files)} files is readable text: {named}",
            )
        _log.warning("skipped %d of %d files that are not UTF-8 text: %s", len(self.skipped), len(self.files), named)


class _UndecodableTextError(TrainerError):
    """A text file that is not text: skipped where there are others."""


def find_files(source: Path, include: Sequence[str], format_: str) -> tuple[SourceFile, ...]:
    """The corpus files of a file or directory, sorted by relative path.

    A glob of `include` without `/` is matched with file names, one with `/` with the relative path (there `*` also
    matches `/`). Hidden files and directories are left out, which also hides the copies behind a mounted ConfigMap.
    Raises TrainerError DataMissing when there is nothing to read.
    """
    try:
        if source.is_dir():
            relatives = [relative for relative in sorted(_walk(source)) if _wanted(relative, include, format_)]
            found = [_source_file(source / relative, relative, format_) for relative in relatives]
        else:
            source.stat()
            found = [_source_file(source, source.name, format_)]
    except OSError as error:
        raise _unreadable(source, error) from error
    files = tuple(file for file in found if file is not None)
    if not any(file.size for file in files):
        raise TrainerError(names.REASON_DATA_MISSING, _nothing_found(source, include, format_, len(files)))
    return files


def read_documents(file: SourceFile, text_field: str) -> Iterator[Piece]:
    """The documents of one file in pieces; empty documents are left out. Raises TrainerError DataCorrupt."""
    if file.format == "text":
        return _text_pieces(file)
    texts = _jsonl_texts(file, text_field) if file.format == "jsonl" else _parquet_texts(file, text_field)
    return (Piece(text, ends=True) for text in texts if text)


def _walk(source: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    for directory, subdirectories, file_names in os.walk(source, onerror=fail):
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        below = os.path.relpath(directory, source).replace(os.sep, "/") + "/"
        below = "" if below == "./" else below
        yield from (below + name for name in file_names if not name.startswith("."))


def _wanted(relative: str, include: Sequence[str], format_: str) -> bool:
    name = relative.rpartition("/")[2]
    if not include:
        formats = tuple(SUFFIXES) if format_ == "auto" else (cast("Format", format_),)
        return _plain_name(name).endswith(tuple(suffix for one in formats for suffix in SUFFIXES[one]))
    return any(
        fnmatchcase(relative, glob) or fnmatchcase(relative, glob.replace("**/", ""))
        if "/" in glob
        # Without a slash the name decides, as in .gitignore.
        else fnmatchcase(name, glob)
        for glob in include
    )


def _plain_name(name: str) -> str:
    return name.lower().removesuffix(".gz")


def _source_file(path: Path, relative: str, format_: str) -> SourceFile | None:
    """None for what is no file. A link into nothing stays in, so that reading it names it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        status = path.lstat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        return None
    if format_ == "auto":
        plain = _plain_name(path.name)
        format_ = next((one for one, suffixes in SUFFIXES.items() if plain.endswith(suffixes)), "text")
    return SourceFile(path, relative, cast("Format", format_), status.st_size, status.st_mtime_ns)


def _unreadable(source: Path, error: OSError) -> TrainerError:
    """What is not there stays so on a restart; a failing disk or file server may come back."""
    permanent = isinstance(error, FileNotFoundError | PermissionError)
    return TrainerError(
        names.REASON_DATA_MISSING if permanent else names.REASON_USER_ERROR,
        f"spec.data.source {str(source)!r}: cannot read {error.filename or source} ({error.strerror or error}). It "
        f"must be a file or directory that is mounted in every member and readable by user {os.getuid()}",
    )


def _nothing_found(source: Path, include: Sequence[str], format_: str, found: int) -> str:
    if found:
        return f"spec.data.source {str(source)!r}: its {found} file(s) are all empty"
    wanted = ", ".join(include) or f"the suffixes of spec.data.format {format_}"
    return (
        f"spec.data.source {str(source)!r}: no file there matches {wanted}. Set spec.data.include to globs that match "
        'your files, for example ["*.log"]; hidden files are never read'
    )


def _open(file: SourceFile) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(file.path)) if file.path.suffix == ".gz" else file.path.open("rb")


def _text_pieces(file: SourceFile) -> Iterator[Piece]:
    """One document per file. A file is decoded to its end before its first piece, so that none is half taken."""
    blocks = _text_blocks(file)
    head = list(islice(blocks, 2))
    if len(head) < 2:
        yield from (Piece(text, ends=True) for text in head if text)
        return
    count = 2 + sum(1 for _ in blocks)
    for number, text in enumerate(_text_blocks(file), start=1):
        yield Piece(text, ends=number == count)


def _text_blocks(file: SourceFile) -> Iterator[str]:
    line = 1
    try:
        with _open(file) as stream:
            while lines := stream.readlines(PIECE_CHARACTERS):
                block = b"".join(lines)
                if b"\0" in block:
                    raise _not_text(file, line + block[: block.index(b"\0")].count(b"\n"), "it holds a NUL byte")
                yield block.decode("utf-8-sig" if line == 1 else "utf-8")
                line += len(lines)
    except UnicodeDecodeError as error:
        bad_line = line + error.object[: error.start].count(b"\n")
        raise _not_text(file, bad_line, f"byte {error.object[error.start]:#04x} is not UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _UndecodableTextError(names.REASON_DATA_CORRUPT, f"{file.path}: broken gzip file ({error})") from error


def _not_text(file: SourceFile, line: int, why: str) -> _UndecodableTextError:
    return _UndecodableTextError(
        names.REASON_DATA_CORRUPT,
        f"{file.path}:{line}: not a text file, {why}; convert it to UTF-8 or leave it out with spec.data.include",
    )


def _jsonl_texts(file: SourceFile, text_field: str) -> Iterator[str]:
    number = 0
    try:
        with _open(file) as stream:
            for number, line in enumerate(stream, start=1):
                if not line.isspace():
                    yield _text_of(json.loads(line), text_field, f"{file.path}:{number}")
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TrainerError(
            names.REASON_DATA_CORRUPT,
            f"{file.path}:{number}: not a JSON record ({error}); repair or remove the line (was the file cut short?)",
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TrainerError(
            names.REASON_DATA_CORRUPT, f"{file.path}:{number + 1}: broken gzip file ({error}); copy it again"
        ) from error


def _text_of(record: Any, text_field: str, place: str) -> str:
    text = record.get(text_field) if isinstance(record, dict) else None
    if isinstance(text, str):
        _check_whole(text, place)
        return text
    if not isinstance(record, dict):
        found = f"the record is a {type(record).__name__}, not an object"
    elif text_field in record:
        found = f"it is {json.dumps(text)[:40]}, not a string"
    else:
        found = f"the record has only {', '.join(map(repr, record)) or 'no fields'}"
    raise TrainerError(
        names.REASON_DATA_CORRUPT,
        f"{place}: no text in field {text_field!r}: {found}. Set spec.data.textField to the field that holds the text",
    )


def _check_whole(text: str, place: str) -> None:
    """JSON may escape half of a character, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise TrainerError(
            names.REASON_DATA_CORRUPT,
            f"{place}: the text has half a character ({half} alone) at position {error.start}; repair or remove the "
            "record (was the text cut short?)",
        ) from error


def _parquet_texts(file: SourceFile, text_field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(file.path) as table:
            if text_field not in table.schema_arrow.names:
                _text_of(dict.fromkeys(table.schema_arrow.names), text_field, str(file.path))
            for batch in table.iter_batches(_PARQUET_ROWS, columns=[text_field]):
                for row, text in enumerate(batch.column(0).to_pylist(), start=row + 1):  # noqa: B020 - counts on
                    yield _text_of({text_field: text}, text_field, f"{file.path}: row {row}")
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if getattr(error, "errno", None) is not None:  # from the system; pyarrow's own complaints have no number
            raise
        raise TrainerError(
            names.REASON_DATA_CORRUPT,
            f"{file.path}: not a readable Parquet file after row {row} ({error}); copy it again",
        ) from error
