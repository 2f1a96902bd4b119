"""Give cached images to a node without copying a byte of their layers.

For each layer that the node's containerd lacks: prepare an empty snapshot, commit it under the layer's chain id, and
bind-mount the cached layer directory read-only over it. All nodes thus share the layers' inodes and page cache. Then
one import of a tiny archive brings manifests and configs. One shell script per node does it all, so the price is a
handful of containerd calls.

Guarantee: repeating it is harmless and brings only what is new. The mounts are also written to the node's
`layer-mounts` file (lines "SOURCE TARGET"), which the node's init applies again at power on, before containerd starts.
Limits: relies on containerd's overlayfs snapshotter keeping a snapshot's files in <root>/snapshots/<n>/fs.
"""

import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from devcluster.errors import DevclusterError
from devcluster.images import store
from devcluster.images.descriptor import Image, archive, chain_ids
from devcluster.nodefiles import LAYER_MOUNTS

NAMESPACE = "k8s.io"

# $1 chain id, $2 the parent's chain id or nothing, $3 layer directory. --mounts prints an overlay's upperdir, or for a
# lowest layer a bind mount's Source: both are the directory that becomes the snapshot's content. The mount comes after
# the commit, since committing counts the bytes of every file: a second for the trainer's dependencies.
_SCRIPT = r"""set -eu
export CONTAINERD_NAMESPACE={namespace}
known=$(ctr snapshots ls)
adopt() {{
  case "$known" in *"$1"*) return 0;; esac
  target=$(ctr snapshots prepare --mounts {token}-"${{1#sha256:}}" $2 |
    grep -oE '(upperdir=|"[Ss]ource": *")[^",]*/snapshots/[0-9]+/fs' | grep -oE '/.*')
  echo "$3 $target" >> {mounts}
  ctr snapshots commit "$1" {token}-"${{1#sha256:}}"
  mount --bind -o ro "$3" "$target"
  known="$known $1"
}}
{calls}
ctr images import --local --discard-unpacked-layers {archive} 2>&1
"""


class Node(Protocol):
    """What is needed of a node of the cluster."""

    @property
    def dir(self) -> Path:
        """The node's directory on the host."""

    def run(self, argv: list[str]) -> str:
        """Run a command inside the node's namespaces, with ctr on PATH; returns its output, raises if it fails."""


def script(images: Sequence[Image], node_dir: Path, token: str) -> str:
    """The shell script that adopts `images` in the node whose directory is `node_dir`. Pure.

    `token` makes the names of snapshots in preparation unique, so that the remains of an interrupted run do no harm.
    """
    calls: dict[str, None] = {}
    for image in images:
        parent = ""
        for diff_id, chain_id in zip(image.diff_ids, chain_ids(image.diff_ids), strict=True):
            calls[f'adopt {chain_id} "{parent}" {shlex.quote(str(store.layer_path(diff_id)))}'] = None
            parent = chain_id
    return _SCRIPT.format(
        namespace=NAMESPACE,
        token=token,
        mounts=shlex.quote(str(node_dir / LAYER_MOUNTS)),
        calls="\n".join(calls),
        archive=shlex.quote(str(archive_path(node_dir))),
    )


def archive_path(node_dir: Path) -> Path:
    """The archive of manifests and configs that is imported."""
    return node_dir / "images.tar"


def adopt(node: Node, images: Sequence[Image] | None = None) -> None:
    """Make `images` (default: all of the cache) available in `node`, whose containerd must be running."""
    with store.in_use():
        wanted = store.images() if images is None else images
        if wanted:
            archive_path(node.dir).write_bytes(archive(wanted))
            node.run(["sh", "-c", script(wanted, node.dir, f"adopt-{secrets.token_hex(4)}")])


def load_archive(node: Node, tar: Path) -> None:
    """Import a docker or OCI archive into `node`: here the layers are really unpacked, once per node."""
    if not tar.is_file():
        raise DevclusterError(f"{tar}: no such file; name an image of the cache or a docker or OCI archive")
    command = ["ctr", "-n", NAMESPACE, "images", "import", "--local", "--discard-unpacked-layers", str(tar.absolute())]
    node.run(command)
