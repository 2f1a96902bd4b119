"""What an image is when its layers are plain directories: descriptors, chain ids, and the tiny archive without layers.

A node's containerd needs two things to run an image: committed snapshots under the layers' chain ids, and a manifest
with a config that name them. The layer blobs themselves are never read once the snapshots exist, so the manifest may
name digests for which no blob exists anywhere. Pure.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from devcluster.errors import DevclusterError

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class Image:
    """One image of the cache.

    `config` is the OCI image configuration; its rootfs.diff_ids name the layers, lowest first. `key` identifies the
    sources from which the image was built: an equal key means that there is nothing to do.
    """

    name: str
    config: dict[str, Any]
    key: str = ""

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The layers, lowest first, as sha256:<hex>."""
        return tuple(self.config["rootfs"]["diff_ids"])

    def to_json(self) -> str:
        """For the cache's file; sorted, so that an equal image is an equal file."""
        return json.dumps({"name": self.name, "key": self.key, "config": self.config}, indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Image":
        """Inverse of to_json; DevclusterError if the file is damaged."""
        try:
            value = json.loads(text)
            image = Image(name=value["name"], config=value["config"], key=value["key"])
            _ = image.diff_ids
        except (ValueError, KeyError, TypeError) as error:
            raise DevclusterError(f"damaged image descriptor ({error!r}): delete it and build again") from error
        return image


def digest(data: bytes) -> str:
    """OCI digest of `data`: sha256:<hex>."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """Chain id of each layer: it names the stack up to and including that layer (OCI image spec, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)


def file_stem(name: str) -> str:
    """File name for an image's descriptor: localhost/a:1 -> localhost+a+1."""
    return name.replace("/", "+").replace(":", "+")


def new_config(diff_ids: Sequence[str], created_by: str, machine: str = "x86_64", **settings: Any) -> dict[str, Any]:
    """OCI image configuration for Linux; `settings` are the fields of its `config`, such as Entrypoint.

    `machine` is what uname calls the processor.
    """
    return {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine),
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created_by": created_by} for _ in diff_ids],
    }


def manifest(image: Image) -> bytes:
    """The image's manifest. Layer sizes are 1: nobody reads those blobs."""
    config = _json(image.config)
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": digest(config), "size": len(config)},
            "layers": [{"mediaType": LAYER_TYPE, "digest": diff_id, "size": 1} for diff_id in image.diff_ids],
        }
    )


def archive(images: Iterable[Image]) -> bytes:
    """One OCI archive (tar) with the manifests and configs of `images` and no layers: a few kilobytes."""
    blobs: list[bytes] = []
    entries = []
    for image in images:
        document = manifest(image)
        blobs += [document, _json(image.config)]
        entries.append(
            {
                "mediaType": MANIFEST_TYPE,
                "digest": digest(document),
                "size": len(document),
                "annotations": {"io.containerd.image.name": image.name},
            }
        )
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}),
    }
    files |= {"blobs/sha256/" + digest(blob).removeprefix("sha256:"): blob for blob in blobs}
    return _tar(files)


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
