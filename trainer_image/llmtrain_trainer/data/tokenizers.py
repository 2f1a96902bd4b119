"""Text to token ids: plain bytes, or any Hugging Face `tokenizers` file.

Every tokenizer can save itself in a form that `transformers.AutoTokenizer.from_pretrained` loads and that gives the
same ids, so that an exported model is usable on its own. Beginning-of-text and other template tokens are not added:
documents are separated by the end-of-text token alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from llmtrain_operator.contract import names
from llmtrain_trainer.errors import ConfigError, TrainerError

Ids = npt.NDArray[np.unsignedinteger[Any]]

BYTE: Final = "byte"
_END_OF_TEXT: Final = "<|endoftext|>"
_KNOWN_END_TOKENS: Final = (_END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[EOS]")
_COMPANIONS: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class Tokenizer(Protocol):
    """What the trainer needs of a tokenizer. Ids are below `vocab_size`; `digest` changes when the ids could."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos(self) -> int: ...
    @property
    def digest(self) -> str: ...
    def encode(self, text: str) -> Ids:
        """Ids of a text, shape (n,), without an end-of-text token."""

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """`encode` of each text; faster than one by one."""

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of ids; special tokens are left out, broken UTF-8 becomes U+FFFD."""

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json into an existing directory."""


def id_type(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The narrowest type that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


class ByteTokenizer:
    """UTF-8 bytes are the ids 0..255 and 256 ends a text. Needs no training and loses nothing."""

    vocab_size = 257
    eos = 256
    digest = "byte-1"

    def encode(self, text: str) -> Ids:
        """The text's UTF-8 bytes."""
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Bytes of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: npt.ArrayLike) -> str:
        """Text of byte ids; ids above 255 (end of text, padding rows of the embedding) are left out."""
        values = np.asarray(ids)
        return values[values < self.eos].astype(np.uint8).tobytes().decode("utf-8", "replace")

    def save(self, directory: Path) -> None:
        """Write the same mapping as a byte-level BPE without merges, which the Hugging Face libraries can load.

        Only there, the literal text of the end token is read as the end token.
        """
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        model = models.BPE(vocab={letter: byte for byte, letter in enumerate(_byte_letters())}, merges=[])
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(_END_OF_TEXT, special=True, normalized=False)])
        tokenizer.save(str(directory / "tokenizer.json"))
        _write_config(directory, _END_OF_TEXT)


class HuggingFaceTokenizer:
    """A tokenizer.json, alone or in a directory with its tokenizer_config.json."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._file = path / "tokenizer.json" if path.is_dir() else path
        try:
            content = self._file.read_bytes()
        except OSError as error:
            raise TrainerError(names.REASON_DATA_MISSING, _missing_message(path, error)) from error
        try:
            self._tokenizer: Any = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exception for whatever it cannot parse
            raise TrainerError(
                names.REASON_DATA_CORRUPT,
                f"spec.data.tokenizer {str(path)!r}: {self._file} is not a Hugging Face tokenizer.json ({error})",
            ) from error
        # A file made for inference may cut or pad; a corpus must come through whole.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self._eos_token = _end_token(self._file, vocabulary)
        self.eos = vocabulary[self._eos_token]
        self.digest = hashlib.sha256(content + self._eos_token.encode()).hexdigest()

    def encode(self, text: str) -> Ids:
        """Ids of a text without template tokens; special tokens spelt out in the text are recognised."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, on all cores."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=id_type(self.vocab_size)) for one in encoded]

    def decode(self, ids: npt.ArrayLike) -> str:
        """Text of ids, special tokens left out."""
        return str(self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=True))

    def save(self, directory: Path) -> None:
        """Copy the files; a tokenizer.json that came alone gets a tokenizer_config.json."""
        for name in _COMPANIONS if self._file.name == "tokenizer.json" else ():
            if (companion := self._file.with_name(name)).is_file():
                shutil.copyfile(companion, directory / name)
        shutil.copyfile(self._file, directory / "tokenizer.json")
        if not (directory / "tokenizer_config.json").exists():
            _write_config(directory, self._eos_token)


def load_tokenizer(spec: str) -> Tokenizer:
    """`byte`, or the local path of a tokenizer.json or of a directory that holds one.

    Raises TrainerError: DataMissing (no such file), DataCorrupt (unreadable), InvalidConfig (no end-of-text token).
    """
    return ByteTokenizer() if spec == BYTE else HuggingFaceTokenizer(Path(spec))


def _end_token(file: Path, vocabulary: dict[str, int]) -> str:
    """The end-of-text token: what tokenizer_config.json names, else the first well-known one in the vocabulary."""
    declared = _declared_end_token(file.with_name("tokenizer_config.json"))
    candidates = _KNOWN_END_TOKENS if declared is None else (declared,)
    for token in candidates:
        if token in vocabulary:
            return token
    raise ConfigError(
        f"spec.data.tokenizer {str(file)!r} has no end-of-text token: its vocabulary has none of "
        f"{', '.join(candidates)}. "
        'Put a tokenizer_config.json with {"eos_token": "..."} naming one of its tokens beside it',
    )


def _declared_end_token(config: Path) -> str | None:
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TrainerError(names.REASON_DATA_CORRUPT, f"spec.data.tokenizer: cannot read {config} ({error})") from error
    token = content.get("eos_token") if isinstance(content, dict) else None
    if isinstance(token, dict):  # older transformers spell a token with its flags
        token = token.get("content")
    return token if isinstance(token, str) else None


def _missing_message(path: Path, error: OSError) -> str:
    if path.is_dir():
        return (
            f"spec.data.tokenizer {str(path)!r} holds no readable tokenizer.json ({error.strerror}). Make one with "
            "transformers: AutoTokenizer.from_pretrained(...).save_pretrained(directory)"
        )
    return (
        f"spec.data.tokenizer {str(path)!r} cannot be read ({error.strerror}). Use `byte`, or the path of a "
        "tokenizer.json (or of a directory that holds one) as it is mounted in the pod"
    )


def _write_config(directory: Path, eos_token: str) -> None:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos_token,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _byte_letters() -> list[str]:
    """The printable stand-in of each byte 0..255 in byte-level BPE files (OpenAI's GPT-2 encoder.py)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    stand_ins = iter(range(256, 512))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]
