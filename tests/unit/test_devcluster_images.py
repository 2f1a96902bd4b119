"""Images of the embedded cluster: what they are named, when they are stale, what is kept."""

import io
import json
import subprocess
import tarfile

import pytest

from devcluster.errors import DevclusterError
from devcluster.images import adoption, builder, sources, store
from devcluster.images.descriptor import Image, archive, chain_ids, digest, manifest, new_config

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path))
    return tmp_path


def image(name, *diff_ids, key=""):
    return Image(name, new_config(diff_ids, "test"), key)


def add_layer(diff_id):
    return store.add_layer(diff_id, lambda directory: directory.mkdir())


@pytest.mark.parametrize(
    ("diff_ids", "expected"),
    [
        pytest.param((), (), id="no-layer"),
        pytest.param((A,), (A,), id="the lowest layer's chain id is its diff id"),
        pytest.param((A, B), (A, digest(f"{A} {B}".encode())), id="each next one hashes chain and layer"),
    ],
)
def test_chain_ids(diff_ids, expected):
    """Chain ids follow the OCI image specification, or containerd would not find its snapshots."""
    assert chain_ids(diff_ids) == expected


def test_descriptor_round_trip_and_damage():
    """A descriptor reads back as it was; a damaged one says what to do."""
    original = image("localhost/x:1", A, B, key="k")
    assert Image.from_json(original.to_json()) == original
    with pytest.raises(DevclusterError, match="delete it"):
        Image.from_json("{}")


def test_archive_names_every_image_and_holds_no_layer():
    """The archive has each image's manifest and config under their digests, and nothing for the layers."""
    images = [image("localhost/x:1", A), image("localhost/y:1", A, B)]
    with tarfile.open(fileobj=io.BytesIO(archive(images))) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    listed = json.loads(files["index.json"])["manifests"]
    assert [entry["annotations"]["io.containerd.image.name"] for entry in listed] == ["localhost/x:1", "localhost/y:1"]
    for entry, expected in zip(listed, images, strict=True):
        document = files["blobs/sha256/" + entry["digest"].removeprefix("sha256:")]
        assert document == manifest(expected)
        config = json.loads(document)["config"]
        assert len(files["blobs/sha256/" + config["digest"].removeprefix("sha256:")]) == config["size"]
    assert not any(A.removeprefix("sha256:") in name for name in files)


def test_script_adopts_a_shared_layer_once_and_below_its_children(cache):
    """Two images on one base make three snapshots, parents first."""
    text = adoption.script([image("localhost/x:1", A, B), image("localhost/y:1", A, C)], cache / "n1", "adopt-1")
    calls = [line.split()[1:3] for line in text.splitlines() if line.startswith("adopt sha256:")]
    assert calls == [[A, '""'], [chain_ids((A, B))[1], f'"{A}"'], [chain_ids((A, C))[1], f'"{A}"']]


def test_script_is_valid_shell(cache):
    """The shell accepts the script."""
    text = adoption.script([image("localhost/x:1", A, B)], cache / "n1", "adopt-1")
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)


def test_a_layer_that_failed_to_fill_is_absent(cache):
    """An interrupted layer never looks complete, and the next attempt succeeds."""

    def fail(directory):
        directory.mkdir()
        raise DevclusterError("disk full")

    with pytest.raises(DevclusterError):
        store.add_layer(A, fail)
    assert not store.layer_path(A).exists()
    assert add_layer(A).is_dir()


def test_image_without_its_layers_is_not_there(cache):
    """An image is refused without its layers, and vanishes with them."""
    with pytest.raises(DevclusterError, match="localhost/x:1"):
        store.put(image("localhost/x:1", A))
    add_layer(A)
    store.put(image("localhost/x:1", A))
    assert store.get("localhost/x:1") == image("localhost/x:1", A)
    store.layer_path(A).rmdir()
    assert store.get("localhost/x:1") is None
    assert store.images() == ()


def test_prune_keeps_what_is_named_or_mounted(cache):
    """A layer goes when no image names it and no node, even a switched-off one, has it mounted."""
    for diff_id in (A, B, C):
        add_layer(diff_id)
    store.put(image("localhost/x:1", A))
    mounts = cache / "clusters" / "dev" / "nodes" / "n1" / "layer-mounts"
    mounts.parent.mkdir(parents=True)
    mounts.write_text(f"{store.layer_path(B)} /var/lib/containerd/somewhere\n")
    assert store.prune() == [store.layer_path(C)]
    assert store.layer_path(A).is_dir()
    assert store.layer_path(B).is_dir()


@pytest.fixture
def repository(tmp_path):
    """A small tree with the names that the images are made of."""
    for name in ("Dockerfile", ".dockerignore", "LICENSE", "pyproject.toml"):
        (tmp_path / name).write_text(name)
    for name in ("requirements", "operator", "trainer_image"):
        (tmp_path / name).mkdir()
    (tmp_path / "operator" / "main.py").write_text("1")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "stale"),
    [
        pytest.param("operator/main.py", True, id="changed source"),
        pytest.param("trainer_image/new.py", True, id="new source"),
        pytest.param("requirements/trainer.txt", True, id="new lock"),
        pytest.param("Dockerfile", True, id="recipe"),
        pytest.param("README.md", False, id="file that no image holds"),
        pytest.param("operator/__pycache__/main.pyc", False, id="bytecode"),
    ],
)
def test_images_are_stale_when_their_sources_change(repository, path, stale):
    """Only what goes into an image makes it stale."""
    before = builder.sources_key(repository, image("base", A))
    (repository / path).parent.mkdir(exist_ok=True)
    (repository / path).write_text("changed")
    assert (builder.sources_key(repository, image("base", A)) != before) is stale


def test_images_are_stale_when_the_base_changes(repository):
    """A new base image rebuilds what stands on it."""
    assert builder.sources_key(repository, image("base", A)) != builder.sources_key(repository, image("base", B))


def test_dockerignore_lets_every_source_through():
    """What counts as a source of the images is what the build context offers."""
    allowed = {
        line[1:].split("/")[0]
        for line in (builder.REPOSITORY / ".dockerignore").read_text().splitlines()
        if line[0] == "!"
    }
    assert allowed | {"Dockerfile", ".dockerignore"} == set(builder.SOURCES)


@pytest.mark.parametrize(
    ("environment", "file", "pip", "uv"),
    [
        pytest.param({}, "", {}, {}, id="nothing set"),
        pytest.param(
            {"PIP_INDEX_URL": "https://mirror.test/simple"},
            "[global]\nindex-url = https://old.test/simple\ntrusted-host = a b\n",
            {"index-url": ["https://mirror.test/simple"], "trusted-host": ["a", "b"]},
            {"index-url": "https://mirror.test/simple", "allow-insecure-host": ["a", "b"]},
            id="environment wins over file",
        ),
        pytest.param({"PIP_FIND_LINKS": "/opt/wheels"}, "", {}, {}, id="local directory is left out"),
        pytest.param(
            {"PIP_INDEX_URL": "https://pip.test/simple", "UV_DEFAULT_INDEX": "https://uv.test/simple"},
            "",
            {"index-url": ["https://pip.test/simple"]},
            {"index-url": "https://uv.test/simple"},
            id="uv's own variable wins for uv",
        ),
    ],
)
def test_package_sources_follow_the_machine(tmp_path, environment, file, pip, uv):
    """A mirror that pip or uv knows on this machine is used inside the build."""
    (tmp_path / "pip.conf").write_text(file)
    found = sources.pip_settings(environment, [tmp_path / "missing.conf", tmp_path / "pip.conf"])
    assert found == pip
    assert sources.uv_settings(environment, found) == uv


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        pytest.param("", [], id="no apt"),
        pytest.param("Ubuntu|http://u.test|noble|main\n", [], id="another distribution"),
        pytest.param(
            "Debian|http://d.test/|bookworm|main\nDebian|http://s.test/|bookworm-security|main\n"
            "Debian|http://d.test/|bookworm|contrib\nVendor|http://v.test/|bookworm|main\n",
            ["deb http://d.test/ bookworm main", "deb http://s.test/ bookworm-security main"],
            id="main of Debian only",
        ),
        pytest.param("Debian|http://d.test/|bookworm-security|main\n", [], id="security alone is no base"),
    ],
)
def test_debian_mirror_follows_the_machine(listed, expected):
    """The base comes from this machine's Debian mirror if it has one for the suite."""
    assert sources.parse_sources(listed) == expected
