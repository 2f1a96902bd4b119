"""The cache of images: one directory per layer, one small descriptor per image.

    <cache>/layers/<diff id without sha256:>/   the layer's files (hard links, so that a layer costs no disk twice)
    <cache>/images/<name>.json                  the image's descriptor

A layer directory appears by one rename: it is complete or absent. It is never written again, since running clusters
have it mounted. Descriptors are replaced by rename. Builders take turns by a file lock.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from devcluster import paths
from devcluster.errors import DevclusterError
from devcluster.images.descriptor import Image, file_stem
from devcluster.nodefiles import LAYER_MOUNTS


def layers_root() -> Path:
    """Directory with one directory per layer."""
    return paths.cache_root() / "layers"


def images_root() -> Path:
    """Directory with one descriptor per image."""
    return paths.cache_root() / "images"


def layer_path(diff_id: str) -> Path:
    """Where the layer `diff_id` is, or would be."""
    return layers_root() / diff_id.removeprefix("sha256:")


def add_layer(diff_id: str, fill: Callable[[Path], None]) -> Path:
    """Let `fill` make the layer's directory unless the layer is there already; returns the layer's directory."""
    target = layer_path(diff_id)
    if not target.is_dir():
        scratch = layers_root() / f".{target.name}"
        shutil.rmtree(scratch, ignore_errors=True)
        layers_root().mkdir(parents=True, exist_ok=True)
        fill(scratch)
        scratch.rename(target)
    return target


def hard_link_tree(source: Path, target: Path) -> None:
    """Copy a tree without copying data. OverlayFS's whiteouts and opaque markers are kept."""
    done = subprocess.run(["cp", "-al", str(source), str(target)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DevclusterError(f"cannot hard-link {source} to {target}: {done.stderr.strip()[-500:]}")


def put(image: Image) -> None:
    """Make `image` visible; its layers must be there."""
    missing = [diff_id for diff_id in image.diff_ids if not layer_path(diff_id).is_dir()]
    if missing:
        raise DevclusterError(f"image {image.name}: layers {missing} are not in {layers_root()}")
    images_root().mkdir(parents=True, exist_ok=True)
    target = images_root() / f"{file_stem(image.name)}.json"
    scratch = target.with_suffix(".new")
    scratch.write_text(image.to_json())
    scratch.rename(target)


def get(name: str) -> Image | None:
    """The image `name` (a full reference), or None if the cache does not have it with all its layers."""
    descriptor = images_root() / f"{file_stem(name)}.json"
    if not descriptor.exists():
        return None
    image = Image.from_json(descriptor.read_text())
    return image if all(layer_path(diff_id).is_dir() for diff_id in image.diff_ids) else None


def images() -> tuple[Image, ...]:
    """All complete images of the cache, by name."""
    stems = sorted(images_root().glob("*.json"))
    every = (Image.from_json(descriptor.read_text()) for descriptor in stems)
    return tuple(image for image in every if all(layer_path(diff_id).is_dir() for diff_id in image.diff_ids))


def mounted_layers() -> set[Path]:
    """Layer directories that some node, running or switched off, has in its list of mounts."""
    lists = [*paths.clusters_root().glob(f"*/*/{LAYER_MOUNTS}"), *paths.clusters_root().glob(f"*/*/*/{LAYER_MOUNTS}")]
    return {Path(line.split()[0]) for file in lists for line in file.read_text().splitlines() if line.strip()}


def prune() -> list[Path]:
    """Remove layers that no image names and no node has mounted; returns what was removed.

    Does nothing while a node is being given images: the next build prunes.
    """
    with _open_lock("layers.lock") as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return []
        needed = {layer_path(diff_id) for image in images() for diff_id in image.diff_ids} | mounted_layers()
        superfluous = [path for path in layers_root().iterdir() if path not in needed] if layers_root().is_dir() else []
        for path in superfluous:
            shutil.rmtree(path)
        return superfluous


def remove(name: str) -> None:
    """Remove the descriptor of the image `name`; the next prune() removes the layers that only it had."""
    (images_root() / f"{file_stem(name)}.json").unlink(missing_ok=True)


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """Keep every layer that is there now until the block ends; any number of nodes may do so at once."""
    with _open_lock("layers.lock") as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def lock(say: Callable[[str], None]) -> Iterator[None]:
    """Hold the builders' lock of this cache."""
    with _open_lock("images.lock") as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is building images; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _open_lock(name: str) -> Iterator[int]:
    paths.cache_root().mkdir(parents=True, exist_ok=True)
    descriptor = os.open(paths.cache_root() / name, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
