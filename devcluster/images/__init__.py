"""Images of the embedded cluster: built once with buildah, given to nodes without copies."""

from devcluster.images.adoption import adopt, load_archive
from devcluster.images.builder import BASE_IMAGE, TARGETS, build, forget, image_name
from devcluster.images.pause import ensure_pause
from devcluster.images.store import images, prune

__all__ = [
    "BASE_IMAGE",
    "TARGETS",
    "adopt",
    "build",
    "ensure_pause",
    "forget",
    "image_name",
    "images",
    "load_archive",
    "prune",
]
