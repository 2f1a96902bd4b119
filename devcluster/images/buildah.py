"""buildah with storage of our own, in namespaces of its own.

Whatever buildah mounts or starts is gone when the command ends, also when it is killed: only the storage directory
<cache>/buildah remains. Built layers are read from it as plain directories.
Limits: needs root; knows the on-disk format of containers/storage's overlay driver (stable since 2017).
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster import paths
from devcluster.errors import DevclusterError

UV_CACHE_ID = "llmtrain-uv"  # id of the cache mount in the Dockerfile
_NAMESPACES = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


@dataclass(frozen=True)
class Layer:
    """A layer in buildah's storage."""

    diff_id: str
    directory: Path


def root() -> Path:
    """All that buildah keeps."""
    return paths.cache_root() / "buildah"


def require(*tools: str) -> None:
    """DevclusterError with the remedy if a tool of a Debian package of the same name is missing."""
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        raise DevclusterError(f"{', '.join(missing)} needed to build images: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise DevclusterError("building images needs root: chroot and overlay mounts")


def isolated(command: list[str], log: Path) -> str:
    """Run `command` in namespaces of its own; returns stdout. stderr goes to `log`, its end into the error."""
    scratch = root() / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(
            [*_NAMESPACES, *command],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            check=False,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
    if done.returncode:
        tail = "\n".join(line[:500] for line in (log.read_text() + done.stdout).splitlines()[-25:])
        raise DevclusterError(f"`{' '.join(command)[:200]}` failed (all of it: {log}):\n{tail}")
    return done.stdout


def buildah(*arguments: str) -> str:
    """Run one buildah command on our storage."""
    storage = ["--storage-driver", "overlay", "--root", str(root() / "root"), "--runroot", str(root() / "run")]
    return isolated(["buildah", *storage, *arguments], root() / "build.log")


def bud(context: Path, tag: str, target: str, arguments: dict[str, str], secrets: dict[str, Path]) -> None:
    """Build `target` of the Dockerfile in `context`, with layer cache and this machine's uv cache."""
    _lend_uv_cache()
    options = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    options += [f"--secret=id={key},src={path}" for key, path in secrets.items()]
    options += [f"--target={target}"] if target else []
    buildah("bud", "--layers", "--isolation=chroot", *options, f"--tag={tag}", str(context))


def _lend_uv_cache() -> None:
    # buildah keeps cache mounts by id below $TMPDIR: a link makes the build share what `uv` has downloaded already.
    cache = Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache" / "uv")
    cache.mkdir(parents=True, exist_ok=True)
    link = root() / "tmp" / "buildah-cache" / UV_CACHE_ID
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink() or link.readlink() != cache:
        link.unlink(missing_ok=True)
        link.symlink_to(cache)


def image_config(tag: str) -> dict[str, Any]:
    """The OCI configuration of a built image."""
    config: dict[str, Any] = json.loads(buildah("inspect", "--type=image", tag))["OCIv1"]
    return config


def image_layers(tag: str) -> list[Layer]:
    """The layers of a built image, lowest first."""
    storage = root() / "root"
    known = {layer["id"]: layer for layer in _read(storage / "overlay-layers" / "layers.json")}
    images = _read(storage / "overlay-images" / "images.json")
    layer_id = next(image["layer"] for image in images if tag in image.get("names", ()))
    layers: list[Layer] = []
    while layer_id:
        entry = known[layer_id]
        layers.insert(0, Layer(entry["diff-digest"], storage / "overlay" / layer_id / "diff"))
        layer_id = entry.get("parent", "")
    return layers


def image_count() -> int:
    """Images in the storage, those without a name included."""
    listed = root() / "root" / "overlay-images" / "images.json"
    return len(_read(listed)) if listed.exists() else 0


def _read(path: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(path.read_text())
    return entries
