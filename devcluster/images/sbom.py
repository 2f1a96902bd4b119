"""What is in the images: a CycloneDX document each, from the locks, the layers and Debian's own list.

    python -m devcluster.images.sbom build/sbom

The locks give Python's packages with the digests that the build demanded. An image that holds anything else in its
environment than its lock names is an error: the document would not be about that image.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from devcluster.errors import DevclusterError
from devcluster.images import store
from devcluster.images.builder import REPOSITORY, TARGETS, image_name
from devcluster.images.descriptor import Image

Json = dict[str, Any]


def main(folder: Path) -> None:
    """Write `<target>.cdx.json` for each target below `folder`. Raises DevclusterError."""
    folder.mkdir(parents=True, exist_ok=True)
    for target in TARGETS:
        image = store.get(image_name(target))
        if image is None:
            raise DevclusterError(f"image {image_name(target)} is not built: `make images` builds it")
        document = describe(image, target, REPOSITORY)
        out = folder / f"{target}.cdx.json"
        out.write_text(json.dumps(document, indent=2))
        print(f"{out}: {len(document['components'])} components")


def describe(image: Image, target: str, repository: Path) -> Json:
    """The CycloneDX document of `image`, which was built as `target` from `repository`."""
    document = from_lock(repository / "requirements" / f"{target}.txt")
    layers = [store.layer_path(diff_id) for diff_id in image.diff_ids]
    locked = {(normal(each["name"]), each["version"]) for each in document["components"]}
    installed = set(python_packages(layers))
    if locked != installed:
        odd = ", ".join(f"{name} {version}" for name, version in sorted(locked ^ installed))
        raise DevclusterError(
            f"{image.name} and requirements/{target}.txt differ in {odd}: `make images` builds it anew"
        )
    document["components"] += debian_packages(layers)
    version = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"]
    document["metadata"]["component"] = {
        "type": "container",
        "bom-ref": "image",
        "name": f"llmtrain-{target}",
        "version": version,
        "properties": [{"name": "oci:diff-id", "value": diff_id} for diff_id in image.diff_ids],
    }
    return document


def from_lock(lock: Path) -> Json:
    """The document of a lock: its packages with their digests."""
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", "--output-reproducible", str(lock)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DevclusterError(f"cyclonedx-py cannot read {lock}: {done.stderr.strip()[-500:]}")
    document: Json = json.loads(done.stdout)
    for component in document["components"]:
        del component["description"]  # the lock's line, digests and all
    return document


def python_packages(layers: list[Path]) -> Iterator[tuple[str, str]]:
    """Normal name and version of each distribution in the image's virtual environment."""
    for layer in layers:
        for metadata in layer.glob("opt/venv/lib/python3*/site-packages/*.dist-info/METADATA"):
            fields = dict(
                re.findall(r"^(Name|Version): (.+)$", metadata.read_text().partition("\n\n")[0], re.MULTILINE)
            )
            yield normal(fields["Name"]), fields["Version"]


def debian_packages(layers: list[Path]) -> list[Json]:
    """A component for each installed package, as the topmost layer with such a list has them."""
    lists = [layer / "var/lib/dpkg/status" for layer in layers]
    status = next((each.read_text() for each in reversed(lists) if each.exists()), "")
    paragraphs = [dict(re.findall(r"^([\w-]+): (.*)$", text, re.MULTILINE)) for text in status.split("\n\n")]
    return [_debian(each) for each in paragraphs if each.get("Status", "").endswith(" installed")]


def _debian(fields: dict[str, str]) -> Json:
    name, version, arch = fields["Package"], fields["Version"], fields["Architecture"]
    purl = f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='')}?arch={arch}"
    return {"type": "library", "bom-ref": f"deb/{name}:{arch}", "name": name, "version": version, "purl": purl}


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except DevclusterError as error:
        sys.exit(f"error: {error}")
