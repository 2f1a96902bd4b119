"""What is said to be in an image is what is in it."""

from __future__ import annotations

import json

import pytest

from devcluster.errors import DevclusterError
from devcluster.images import sbom, store
from devcluster.images.descriptor import Image

LOCK = """\
a-package==1.0 \\
    --hash=sha256:065665c041c42a5938ed220bdcd7230f22527fbec085e1853d2402c8a3615d9d
    # via llmtrain
"""
STATUS = """\
Package: tzdata
Status: install ok installed
Architecture: all
Version: 2024a-0+deb12u1
Description: time zones

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1
"""


@pytest.fixture
def repository(tmp_path):
    """One with a lock of one package."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "operator.txt").write_text(LOCK)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "9.9"\n')
    return tmp_path


@pytest.fixture
def image(tmp_path, monkeypatch):
    """Two layers: Debian's list, and an environment of one package."""
    monkeypatch.setattr(store, "layer_path", lambda diff_id: tmp_path / "layers" / diff_id)
    base, python = (tmp_path / "layers" / each for each in ("base", "python"))
    (base / "var/lib/dpkg").mkdir(parents=True)
    (base / "var/lib/dpkg/status").write_text(STATUS)
    (python / "opt/venv/lib/python3.11/site-packages/A_Package-1.0.dist-info").mkdir(parents=True)
    metadata = python / "opt/venv/lib/python3.11/site-packages/A_Package-1.0.dist-info/METADATA"
    metadata.write_text("Metadata-Version: 2.4\nName: A_Package\nVersion: 1.0\n\nName: not-this\n")
    config = {"rootfs": {"type": "layers", "diff_ids": ["base", "python"]}}
    return Image("localhost/llmtrain-operator:dev", config, "key")


def test_python_comes_with_its_digests_and_debian_with_its_versions(image, repository) -> None:
    document = sbom.describe(image, "operator", repository)
    python, debian = document["components"]
    assert python["purl"] == "pkg:pypi/a-package@1.0"
    assert "065665c041c42a59" in json.dumps(python["externalReferences"])
    assert debian["purl"] == "pkg:deb/debian/tzdata@2024a-0%2Bdeb12u1?arch=all"
    component = document["metadata"]["component"]
    assert (component["name"], component["version"]) == ("llmtrain-operator", "9.9")
    assert [each["value"] for each in component["properties"]] == ["base", "python"]


def test_an_image_with_something_else_in_it_is_not_described(image, repository) -> None:
    (repository / "requirements" / "operator.txt").write_text(LOCK.replace("1.0", "1.1"))
    with pytest.raises(DevclusterError, match=r"differ in a-package 1\.0, a-package 1\.1"):
        sbom.describe(image, "operator", repository)
