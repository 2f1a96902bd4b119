"""The environment of DLRover's flash checkpoint: a virtual environment of its own, made once and kept.

DLRover 0.6.1 does not go with the torch that llmtrain pins, so its engine runs under another Python than the rest.
Guarantee: a Python that is returned has all of `requirements/dlrover.txt` installed, by hash; an environment whose
making was cut off is made anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements" / "dlrover.txt"
CONTENDER = Path(__file__).with_name("dlrover_contender.py")
UV = Path("uv-0.13.8") / "bin" / "uv"
_MINUTES = 30


class EnvironmentMissing(Exception):  # noqa: N818 - it says what happened
    """DLRover cannot be run here; the message says why and what to do."""


def python_of_dlrover() -> Path:
    """The Python that can import DLRover. Downloads about 3 GB the first time. Raises `EnvironmentMissing`."""
    if sys.version_info >= (3, 13):
        raise EnvironmentMissing(
            "DLRover 0.6.1 imports telnetlib, which Python 3.13 dropped: run this with Python 3.11"
        )
    cache = Path(os.environ.get("LLMTRAIN_CACHE") or Path.home() / ".cache" / "llmtrain")
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    home = cache / f"dlrover-venv-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    # Two benchmarks may ask at the same time.
    with (cache / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / ".installed").exists():
            _make(home, _uv(cache))
    return home / "bin" / "python"


def measure(size: int, workers: int, saves: int) -> dict[str, Any]:
    """What `dlrover_contender.py` found out with `size` bytes of state for each worker. Raises `EnvironmentMissing`."""
    python = python_of_dlrover()
    paths = os.pathsep.join(str(ROOT / name) for name in ("operator", "trainer_image"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        numbers = {"bytes": size, "workers": workers, "saves": saves, "out": out}
        arguments = [text for key, value in numbers.items() for text in (f"--{key}", str(value))]
        command = [str(python), "-P", str(CONTENDER), *arguments]
        subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, check=True, timeout=_MINUTES * 60)
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def _make(home: Path, uv: str) -> None:
    python = home / "bin" / "python"
    try:
        _run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(home)])
        # Compiled once: every worker imports torch, and may be told to write no bytecode.
        installing = [uv, "pip", "sync", "-q", "--compile-bytecode", "--require-hashes"]
        _run([*installing, "--python", str(python), str(LOCK)])
        _run([str(python), "-c", "import dlrover, torch"])
    except EnvironmentMissing:
        shutil.rmtree(home, ignore_errors=True)
        raise
    (home / ".installed").touch()


def _uv(cache: Path) -> str:
    """The project's own uv (`make setup` puts it there), else the machine's."""
    own = cache / UV
    found = str(own) if own.exists() else shutil.which("uv")
    if found is None:
        raise EnvironmentMissing(f"there is no uv at {own}: run `make setup` first")
    return found


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MINUTES * 60, check=False)
    except subprocess.TimeoutExpired:
        raise EnvironmentMissing(f"DLRover's environment was not made within {_MINUTES} minutes: {command}") from None
    if done.returncode:
        raise EnvironmentMissing(
            f"DLRover's environment could not be made; it comes from the package registry, so look whether that can be "
            f"reached. `{' '.join(command)}` said:\n{done.stderr.strip()[-2000:]}"
        )


if __name__ == "__main__":
    print(python_of_dlrover())
