"""Finding and reading text, JSON Lines and Parquet."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmtrain_operator.contract import names
from llmtrain_trainer.data.corpus import Corpus, find_files
from llmtrain_trainer.errors import TrainerError


def write(root: Path, files: dict[str, bytes]) -> Path:
    for relative, content in files.items():
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def parquet(**columns: list[object]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def not_utf8() -> bytes:
    """A column that says it is text and is not, as careless writers make it."""
    column = pa.array([b"good", b"\xff\xfe"], pa.binary()).view(pa.string())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": column}), sink)
    return sink.getvalue().to_pybytes()


def corpus(source: Path, include: tuple[str, ...] = (), format_: str = "auto", text_field: str = "text") -> Corpus:
    return Corpus(find_files(source, include, format_), text_field, tolerant=source.is_dir())


def documents(found: Corpus) -> list[str]:
    texts, parts = [], []
    for piece in found.pieces():
        parts.append(piece.text)
        if piece.ends:
            texts.append("".join(parts))
            parts = []
    assert not parts
    return texts


TREE = {
    "b.py": b"",
    "a/z.txt": b"",
    "a/b/c.md": b"",
    "a.jsonl.gz": b"",
    "notes.log": b"",
    "image.png": b"",
    ".git/config.txt": b"",
    ".hidden.txt": b"",
    "t.parquet": b"",
}


@pytest.mark.parametrize(
    ("include", "format_", "expected"),
    [
        pytest.param((), "auto", ["a.jsonl.gz", "a/b/c.md", "a/z.txt", "b.py", "t.parquet"], id="known suffixes"),
        pytest.param((), "jsonl", ["a.jsonl.gz"], id="suffixes of the format"),
        pytest.param(("*.log", "*.py"), "auto", ["b.py", "notes.log"], id="names"),
        pytest.param(("a/*",), "auto", ["a/b/c.md", "a/z.txt"], id="a directory and all below"),
        pytest.param(("**/*.txt",), "auto", ["a/z.txt"], id="recursive"),
        pytest.param(("**/b.py",), "auto", ["b.py"], id="recursive includes the top"),
    ],
)
def test_files_are_found_by_include_in_order_of_their_paths(include, format_, expected, tmp_path):
    """Hidden files and directories never are."""
    write(tmp_path, dict.fromkeys(TREE, b"x"))
    assert [file.relative for file in find_files(tmp_path, include, format_)] == expected


def test_a_mounted_config_map_is_read_once(tmp_path):
    """Kubernetes shows each file as a link into a hidden, versioned directory."""
    write(tmp_path, {"..2026_11_21/corpus.txt": b"words"})
    (tmp_path / "..data").symlink_to("..2026_11_21")
    (tmp_path / "corpus.txt").symlink_to("..data/corpus.txt")
    assert documents(corpus(tmp_path)) == ["words"]


def test_every_format_gives_its_documents_in_order(tmp_path):
    """Formats may be mixed; empty documents are left out; a byte order mark and line ends are handled as text."""
    lines = b'{"text": "one", "n": 1}\n\n{"text": ""}\n{"text": "zw\xc3\xb6lf\\n"}'
    write(
        tmp_path,
        {
            "a.txt": b"\xef\xbb\xbfplain\r\n",
            "b.txt.gz": gzip.compress(b"packed"),
            "c.jsonl": lines,
            "d.jsonl.gz": gzip.compress(lines),
            "e.parquet": parquet(n=[1, 2, 3], text=["row", "", "another"]),
            "f.txt": b"",
        },
    )
    expected = ["plain\r\n", "packed", "one", "zwölf\n", "one", "zwölf\n", "row", "another"]
    assert documents(corpus(tmp_path)) == expected


def test_the_text_field_can_have_any_name(tmp_path):
    """`textField` names it in JSON Lines and Parquet alike."""
    write(tmp_path, {"a.jsonl": b'{"content": "j"}', "b.parquet": parquet(content=["p"])})
    assert documents(corpus(tmp_path, text_field="content")) == ["j", "p"]


def test_a_single_file_of_unknown_suffix_is_text_unless_the_format_says_otherwise(tmp_path):
    """`auto` goes by the suffix, `format` overrides it."""
    write(tmp_path, {"data": b'{"text": "x"}'})
    assert documents(corpus(tmp_path / "data")) == ['{"text": "x"}']
    assert documents(corpus(tmp_path / "data", format_="jsonl")) == ["x"]


def test_a_large_text_comes_in_pieces_that_lose_nothing(tmp_path):
    """Pieces end at line ends; only the last one ends the document."""
    text = "".join(f"line {number} é\n" for number in range(30_000))
    write(tmp_path, {"big.txt": text.encode()})
    pieces = list(corpus(tmp_path / "big.txt").pieces())
    assert len(pieces) > 3
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece.text.endswith("\n") for piece in pieces)


LATE = b"fine line\n" * 20_000
UNREADABLE = {
    "latin.txt": b"ok\nna\xefve",
    "binary.txt": b"\x7fELF\0\0",
    "late.txt": LATE + b"\xff",
    "cut.txt.gz": b"\x1f",
}


def test_undecodable_files_of_a_directory_are_skipped_and_named(tmp_path, caplog):
    """None of a bad file's text is taken, not even what precedes the damage; a dangling link counts as one."""
    write(tmp_path, {**UNREADABLE, "good.txt": b"good"})
    (tmp_path / "link.txt").symlink_to("nowhere")
    found = corpus(tmp_path)
    assert documents(found) == ["good"]
    assert [any(name in skipped for skipped in found.skipped) for name in (*UNREADABLE, "link.txt")] == [True] * 5
    assert "skipped 5 of 6 files" in caplog.text
    assert "latin.txt:2: not a text file, byte 0xef is not UTF-8" in caplog.text


def _jsonl(content: bytes) -> tuple[str, bytes]:
    return "x.jsonl", content


@pytest.mark.parametrize(
    ("file", "words"),
    [
        pytest.param(("x.txt", UNREADABLE["latin.txt"]), "x.txt:2: .*0xef is not UTF-8; convert it", id="not UTF-8"),
        pytest.param(("x.txt", UNREADABLE["late.txt"]), "x.txt:20001: ", id="damage far into a text"),
        pytest.param(("x.txt", b"a\nb\0"), "x.txt:2: .*NUL byte", id="binary"),
        pytest.param(("x.txt.gz", gzip.compress(LATE)[:-20]), "x.txt.gz: broken gzip", id="gzip cut short"),
        pytest.param(_jsonl(b'{"text": "a"}\n{"text": "b'), "x.jsonl:2: not a JSON record", id="line cut short"),
        pytest.param(_jsonl(b'{"text": "a"}\n\n{"body": "b"}'), "x.jsonl:3: .*'text'.*only 'body'", id="no field"),
        pytest.param(_jsonl(b'{"text": null}'), "x.jsonl:1: .*it is null, not a string", id="null"),
        pytest.param(_jsonl(b'["text"]'), "x.jsonl:1: .*is a list, not an object", id="not an object"),
        pytest.param(_jsonl(b'{"text": "\xff"}'), "x.jsonl:1: not a JSON record", id="not UTF-8 in JSON"),
        pytest.param(
            ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9)[:-9]), "broken gzip", id="JSON gzip cut short"
        ),
        pytest.param(("x.parquet", b"PAR1 nonsense PAR1"), "x.parquet: not a readable Parquet", id="not Parquet"),
        pytest.param(("x.parquet", parquet(body=["a"])), "x.parquet: .*'text'.*only 'body'", id="no column"),
        pytest.param(("x.parquet", parquet(text=["a", None])), "x.parquet: row 2: .*is null", id="null row"),
        pytest.param(
            _jsonl(b'{"text": "a"}\n{"text": "hi \\ud83d"}'),
            r"x.jsonl:2: .*half a character \(\\ud83d",
            id="half an emoji",
        ),
        pytest.param(("x.parquet", not_utf8()), "x.parquet: not a readable Parquet", id="not UTF-8 in Parquet"),
        pytest.param(("x.parquet", parquet(text=[1])), "x.parquet: row 1: .*it is 1, not a string", id="number column"),
    ],
)
def test_corrupt_data_is_named_with_its_place(file, words, tmp_path):
    """A file that was named itself, and any JSON Lines or Parquet file, must be sound."""
    write(tmp_path, dict([file]))
    with pytest.raises(TrainerError, match=words) as caught:
        list(corpus(tmp_path / file[0]).pieces())
    assert caught.value.reason == names.REASON_DATA_CORRUPT


def test_a_corrupt_json_lines_file_in_a_directory_is_not_skipped(tmp_path):
    """Only text is taken as it is found."""
    write(tmp_path, {"a.txt": b"good", "b.jsonl": b"{"})
    with pytest.raises(TrainerError, match=r"b\.jsonl:1"):
        list(corpus(tmp_path).pieces())


def test_a_directory_without_any_readable_file_is_corrupt(tmp_path):
    """Training on nothing is no way to treat a wrong encoding."""
    write(tmp_path, UNREADABLE)
    with pytest.raises(TrainerError, match="none of 4 files is readable text") as caught:
        list(corpus(tmp_path).pieces())
    assert caught.value.reason == names.REASON_DATA_CORRUPT


@pytest.mark.parametrize(
    ("files", "below", "include", "words"),
    [
        pytest.param({}, "nowhere", (), r"cannot read .*nowhere.*mounted in every member", id="no such path"),
        pytest.param({}, "", (), "no file there matches the suffixes of spec.data.format auto", id="empty directory"),
        pytest.param({"a.txt": b"x"}, "", ("*.py",), r"matches \*\.py\. Set spec.data.include", id="nothing included"),
        pytest.param({"a.txt": b"", "b.txt": b""}, "", (), r"its 2 file\(s\) are all empty", id="empty files"),
        pytest.param({"a.txt": b""}, "a.txt", (), r"its 1 file\(s\) are all empty", id="empty file"),
    ],
)
def test_missing_data_is_named_with_the_remedy(files, below, include, words, tmp_path):
    """The error carries the field and its value."""
    write(tmp_path, files)
    with pytest.raises(TrainerError, match=words) as caught:
        find_files(tmp_path / below, include, "auto")
    assert caught.value.reason == names.REASON_DATA_MISSING
    assert f"spec.data.source {str(tmp_path / below)!r}" in str(caught.value)


@pytest.mark.parametrize("name", ["b.jsonl", "b.parquet"])
def test_a_missing_shard_is_an_error(name, tmp_path):
    """A link into nothing among the Parquet or JSON Lines files means that a part of the data is not mounted."""
    write(tmp_path, {"a.jsonl": json.dumps({"text": "x"}).encode()})
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(TrainerError, match=f"cannot read .*{name}") as caught:
        list(corpus(tmp_path).pieces())
    assert caught.value.reason == names.REASON_DATA_MISSING
