"""Images of the embedded cluster: built once with buildah, given to nodes without copies."""

from devcluster.images.adopt import adopt, load_archive
from devcluster.images.pause import ensure_pause
from devcluster.images.store import images, prune

__all__ = ["adopt", "ensure_pause", "images", "load_archive", "prune"]
