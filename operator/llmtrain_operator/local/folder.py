"""What a run keeps on disk: the job, its pods and events as JSON, the pods' logs and tokens, the control socket.

One process writes, any number read: a file is replaced as a whole, so that readers never see half of it. The folder
belongs to its user alone, since the socket in it takes orders.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

Part = Literal["status", "pods", "events"]
_SHARED: Final = Path("/dev/shm")
_ENOUGH: Final = 2**30
"""Bytes below which it is a container's token amount, meant for other things."""
_SHORT: Final = 40
"""Letters of a directory in which the names of pods' sockets do not get too long."""


def root(environ: Mapping[str, str]) -> Path:
    """The directory of all runs (`jobs/NAME`) and of the claims (`volumes/CLAIM`)."""
    cache = environ.get("LLMTRAIN_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "llmtrain") / "local"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one job's runs."""

    path: Path

    @property
    def logs(self) -> Path:
        """A file per pod."""
        return self.path / "logs"

    @property
    def tokens(self) -> Path:
        """A file per pod, with which it proves itself to the coordinator."""
        return self.path / "tokens"

    @property
    def lock(self) -> Path:
        """Held by the process that trains the job."""
        return self.path / "lock"

    @property
    def control(self) -> Path:
        """The socket of the process that trains the job."""
        return self.path / "control.sock"

    def make(self) -> None:
        """Create it, for this user only."""
        for folder in (self.path, self.logs, self.tokens):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)

    def read(self, part: Part) -> Any:
        """What was written last, None if nothing was."""
        try:
            return json.loads(self._file(part).read_text())
        except FileNotFoundError:
            return None

    def write(self, part: Part, value: Any) -> None:
        """Replace a part. `status` is the whole job object."""
        draft = self._file(part).with_suffix(".new")
        draft.write_text(json.dumps(value, indent=2))
        draft.replace(self._file(part))

    def log(self, pod: str) -> Path:
        """What a pod printed."""
        return self.logs / f"{pod}.log"

    @property
    def memories(self) -> Path:
        """A directory per pod for snapshots, in memory if this machine has some to share."""
        if _SHARED.is_dir() and shutil.disk_usage(_SHARED).total >= _ENOUGH:
            return _SHARED / self._own_name
        return self.path / "memory"

    @property
    def scratches(self) -> Path:
        """A directory per pod for temporary files, which go with it however it ends."""
        place = tempfile.gettempdir()
        return Path(place if len(place) <= _SHORT else "/tmp") / self._own_name

    def forget_memories(self) -> None:
        """Give the memory and the temporary files back, also those of a run that was killed."""
        for folder in (self.memories, self.scratches):
            shutil.rmtree(folder, ignore_errors=True)

    def forget_memory(self, uid: str) -> None:
        """Give back those of one pod."""
        for folder in (self.memory(uid), self.scratch(uid)):
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # others are there
                folder.parent.rmdir()

    def memory(self, uid: str) -> Path:
        """That of the pod with this UID."""
        return self.memories / uid

    def scratch(self, uid: str) -> Path:
        """Temporary files of the pod with this UID."""
        return self.scratches / uid[:8]

    @property
    def _own_name(self) -> str:
        """One that no other user's or job's folder has."""
        return f"llmtrain-{os.getuid()}-{hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:16]}"

    def _file(self, part: Part) -> Path:
        return self.path / f"{part}.json"


class ShortPath:
    """`path` under a name of bounded length, for sockets, whose names may not have more than 107 bytes. Linux only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory = -1

    def __enter__(self) -> str:
        self._directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._directory}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        os.close(self._directory)
