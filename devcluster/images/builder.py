"""Build the images of this repository once and keep them in the cache; equal sources are not built again.

Steps, each skipped if its result is there: a Debian base (mmdebstrap), the Dockerfile's targets (buildah, which caches
each instruction), and for every built layer a directory of hard links in the layer store. The thin last layer of each
target holds the code, so a change of the source costs seconds and no copy of the dependencies.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from devcluster.errors import DevclusterError
from devcluster.images import buildah, sources, store
from devcluster.images.descriptor import Image
from devcluster.images.pause import ensure_pause

REPOSITORY = Path(__file__).parents[2]
BASE_IMAGE = "localhost/llmtrain-base:bookworm"
TARGETS = ("operator", "trainer")

_BASE_PACKAGES = ("python3", "python3-venv", "ca-certificates", "catatonit")
_BASE_OPTIONS = (
    "--variant=minbase",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)
_BASE_DOCKERFILE = (
    "FROM scratch\nADD base.tar /\nENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
)

# What the Dockerfile copies; .dockerignore names the same.
SOURCES = ("Dockerfile", ".dockerignore", "LICENSE", "pyproject.toml", "requirements", "operator", "trainer_image")
_MAX_STORED_IMAGES = 120


def image_name(target: str, tag: str = "dev") -> str:
    """What the image of one of TARGETS is called in the cluster."""
    return f"localhost/llmtrain-{target}:{tag}"


def build(
    targets: Iterable[str] = TARGETS,
    say: Callable[[str], None] = print,
    repository: Path = REPOSITORY,
    tag: str = "dev",
) -> list[Image]:
    """Bring the pause, base and `targets` images of the cache up to date and return them.

    Raises DevclusterError if a target is unknown, a tool is missing or a build fails.
    """
    targets = list(targets)
    if unknown := set(targets) - set(TARGETS):
        raise DevclusterError(f"image {', '.join(sorted(unknown))!r}: choose from {', '.join(TARGETS)}")
    with store.lock(say):
        wanted = [ensure_pause(), ensure_base(say)]
        key = sources_key(repository, wanted[-1])
        for target in targets:
            known = store.get(image_name(target, tag))
            fresh = known is not None and known.key == key
            wanted.append(known if known is not None and fresh else _build_target(repository, target, tag, key, say))
        store.prune()
    return wanted


def forget(tag: str, say: Callable[[str], None] = print) -> None:
    """Remove all that was built under `tag`. Nodes that run it keep it."""
    with store.lock(say):
        for target in TARGETS:
            name = image_name(target, tag)
            if store.get(name) is not None:
                store.remove(name)
                buildah.buildah("rmi", "--force", name)
        store.prune()


def ensure_base(say: Callable[[str], None]) -> Image:
    """The base image: minimal Debian with Python, made from this machine's package mirror."""
    recipe = repr((_BASE_PACKAGES, _BASE_OPTIONS, _BASE_DOCKERFILE, sources.SUITE))
    key = hashlib.sha256(recipe.encode()).hexdigest()
    if (known := store.get(BASE_IMAGE)) is not None and known.key == key:
        return known
    buildah.require("mmdebstrap", "buildah")
    started = time.monotonic()
    say("building the base image from Debian packages (about 30 s)")
    buildah.root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="base-", dir=buildah.root()) as scratch:
        context = Path(scratch)
        command = ["mmdebstrap", *_BASE_OPTIONS, f"--include={','.join(_BASE_PACKAGES)}", sources.SUITE]
        command += [str(context / "base.tar"), *sources.debian_sources()]
        buildah.isolated(command, buildah.root() / "base.log")
        (context / "Dockerfile").write_text(_BASE_DOCKERFILE)
        buildah.bud(context, BASE_IMAGE, target="", arguments={}, secrets={})
    image = _harvest(BASE_IMAGE, key)
    say(f"built {BASE_IMAGE} in {time.monotonic() - started:.0f} s")
    return image


def sources_key(repository: Path, base: Image) -> str:
    """Digest over all that shapes the images: file names, contents and executable bits, and the base image."""
    digest = hashlib.sha256(" ".join(base.diff_ids).encode())
    for path in _source_files(repository):
        mode = path.stat().st_mode & 0o111
        digest.update(f"\n{path.relative_to(repository)} {mode} ".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _source_files(repository: Path) -> Sequence[Path]:
    files: list[Path] = []
    for name in SOURCES:
        root = repository / name
        found = [root] if root.is_file() else sorted(root.rglob("*"))
        files += [path for path in found if path.is_file() and "__pycache__" not in path.parts]
    return files


def _build_target(repository: Path, target: str, tag: str, key: str, say: Callable[[str], None]) -> Image:
    buildah.require("buildah")
    started, name = time.monotonic(), image_name(target, tag)
    before = store.get(name)
    first_time = target == "trainer" and store.get(image_name(target)) is None
    say(f"building {name}" + (" (minutes, but once: its dependencies are 5 GB)" if first_time else ""))
    buildah.buildah("rm", "--all")  # the remains of a build that was killed
    with tempfile.TemporaryDirectory(prefix="secrets-", dir=buildah.root()) as scratch:
        secrets = sources.write_secrets(Path(scratch))
        buildah.bud(repository, name, target, {"BASE_IMAGE": BASE_IMAGE}, secrets)
    image = _harvest(name, key)
    _tidy(before, image)
    say(f"built {name} in {time.monotonic() - started:.0f} s")
    return image


def _harvest(name: str, key: str) -> Image:
    for layer in buildah.image_layers(name):
        store.add_layer(layer.diff_id, partial(store.hard_link_tree, layer.directory))
    image = Image(name, buildah.image_config(name), key)
    store.put(image)
    return image


def _tidy(before: Image | None, after: Image) -> None:
    # New dependencies leave gigabytes behind, each new source a few megabytes. Pruning also drops parts of the
    # instruction cache, so the second waits until there are many.
    new_dependencies = before is not None and before.diff_ids[:-1] != after.diff_ids[:-1]
    if new_dependencies or buildah.image_count() > _MAX_STORED_IMAGES:
        buildah.buildah("rmi", "--prune", "--force")
