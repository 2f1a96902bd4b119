"""How the cluster's binaries are built: the generated go.mod, the cache's stamps, and errors that say what to do."""

import dataclasses

import pytest

from devcluster import binaries
from devcluster.errors import DevclusterError

UPSTREAM = """module k8s.io/kubernetes

go 1.26.0

require (
\tgithub.com/google/cadvisor v0.56.2
\tk8s.io/api v0.0.0
\tk8s.io/klog/v2 v2.140.0
\tk8s.io/utils v0.0.0-20260108192941-914a6e750570
)

require k8s.io/mount-utils v0.0.0 // indirect

replace (
\tk8s.io/api => ./staging/src/k8s.io/api
\tk8s.io/mount-utils => ./staging/src/k8s.io/mount-utils
)
"""


def test_staging_modules_become_published_ones_and_others_stay():
    """Each staging module is required and pinned at v0.<minor>.<patch>; pseudo-versions are left alone."""
    generated = binaries.kubernetes_go_mod(UPSTREAM, "1.36.3").splitlines()
    assert "\tk8s.io/api v0.36.3" in generated
    assert "require k8s.io/mount-utils v0.36.3 // indirect" in generated
    assert "\tk8s.io/utils v0.0.0-20260108192941-914a6e750570" in generated
    assert "\tk8s.io/klog/v2 v2.140.0" in generated
    assert [line for line in generated if line.startswith("replace k8s")] == [
        "replace k8s.io/api => k8s.io/api v0.36.3",
        "replace k8s.io/mount-utils => k8s.io/mount-utils v0.36.3",
    ]
    assert not [line for line in generated if "./staging" in line]
    assert generated[-1] == "require k8s.io/kubernetes v1.36.3"


def test_a_stamp_follows_what_shapes_the_build_and_nothing_else():
    """A changed plugin list or version gives a new directory; a better estimate of the time does not."""
    recipe = binaries.RECIPES[1]
    assert dataclasses.replace(recipe, main=recipe.main + "//").stamp != recipe.stamp
    assert dataclasses.replace(recipe, version="9.9.9").stamp != recipe.stamp
    assert dataclasses.replace(recipe, cold_seconds=1).stamp == recipe.stamp


def test_without_go_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    """Both a missing and an old Go are named, with the remedy."""
    monkeypatch.setattr(binaries.shutil, "which", lambda _: None)
    with pytest.raises(DevclusterError, match=r"Go is needed.*install Go >= 1\.21"):
        binaries.find_go()
    old = tmp_path / "go"
    old.write_text("#!/bin/sh\necho go version go1.19.8 linux/amd64\n")
    old.chmod(0o755)
    monkeypatch.setattr(binaries.shutil, "which", lambda _: str(old))
    with pytest.raises(DevclusterError, match=r"too old .*1\.19\.8"):
        binaries.find_go()


def test_a_failed_build_leaves_no_directory_that_looks_built(monkeypatch, tmp_path):
    """The error carries the compiler's words; the cache stays without that component."""
    go = tmp_path / "go"
    go.write_text(
        '#!/bin/sh\n[ "$1" = version ] && echo go version go1.26.0 && exit\necho no such module >&2; exit 1\n'
    )
    go.chmod(0o755)
    monkeypatch.setattr(binaries.shutil, "which", lambda _: str(go))
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DevclusterError, match="no such module"):
        binaries.ensure(lambda _: None)
    assert binaries.cached() is None
    assert [path.name for path in (tmp_path / "cache" / "bin").iterdir()] == [".lock"]
