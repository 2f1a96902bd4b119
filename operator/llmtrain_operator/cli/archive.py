"""A support bundle while it is being filled: texts without secrets, and a list of what could not be had."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

import yaml

from llmtrain_operator.cli import redact
from llmtrain_operator.ports import Rejected, Unavailable

T = TypeVar("T")

_README: Final = """\
Support bundle of the training job {job}, made by llmtrain {version} at {when}.

In it:
{contents}
Not in it:
{missing}
Taken out, in every file: values of variables and options whose name says that they are secret (HF_TOKEN, ...),
passwords in URLs, bearer tokens, JSON web tokens, private keys, keys in the form of well-known services. Secrets were
never read. A secret in another form under a harmless name is not recognised, and logs are what the programs printed:
look before you pass this on.
"""


class Archive:
    """Files by name, each with what it is."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[str, str]] = {}
        self._missing: list[str] = []

    def text(self, name: str, what: str, content: str) -> None:
        """Add a text."""
        self._files[name] = (what, redact.text(content))

    def objects(self, name: str, what: str, content: Any) -> None:
        """Add Kubernetes objects as YAML."""
        plain = yaml.safe_dump(redact.value(content), sort_keys=False, width=120, allow_unicode=True)
        self._files[name] = (what, plain)

    async def try_for(self, what: str, source: Awaitable[T]) -> T | None:
        """What `source` gives; None if it cannot be had, which is noted with the reason."""
        try:
            return await source
        except (Rejected, Unavailable) as error:
            self._missing.append(f"{what}: {' '.join(redact.text(str(error)).split())}")
            return None

    def contents(self) -> list[str]:
        """A line per file, and one for each thing that could not be had."""
        width = max(map(len, self._files), default=0)
        files = [f"{name:{width}}  {what}" for name, (what, _) in self._files.items()]
        return files + [f"not in it: {each}" for each in self._missing]

    def packed(self, folder: str, job: str, version: str, when: str, time: float) -> bytes:
        """The .tar.gz, everything below `folder`, with a README that says what is in it. `time`: of the files."""
        listed = "".join(f"  {name}: {what}\n" for name, (what, _) in self._files.items())
        missing = "".join(f"  {each}\n" for each in self._missing) or "  nothing that was asked for is missing\n"
        readme = _README.format(job=job, version=version, when=when, contents=listed, missing=missing)
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w:gz") as archive:
            for name, content in {"README.txt": readme, **{n: text for n, (_, text) in self._files.items()}}.items():
                data = content.encode()
                info = tarfile.TarInfo(f"{folder}/{name}")
                info.size, info.mtime = len(data), int(time)
                archive.addfile(info, io.BytesIO(data))
        return target.getvalue()
