"""What a machine lacks is named, all of it at once, with the way to get it."""

from pathlib import Path

import pytest

from devcluster import preflight
from devcluster.errors import DevclusterError


def test_a_missing_program_is_named_by_its_package():
    """The user installs packages, not programs; one package is named once."""
    wanted = {"no-such-program": "some-package", "no-such-other": "some-package", "sh": "dash"}
    assert preflight.missing_packages(wanted) == ["some-package"]


def test_all_problems_are_reported_together(monkeypatch):
    """Not root, missing programs, too many cores, a bad cache: one error with a remedy each."""
    monkeypatch.setattr(preflight.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(preflight, "PROGRAMS", {"no-such-program": "some-package"})
    monkeypatch.setenv("LLMTRAIN_CACHE", "/var/lib/with blank")
    with pytest.raises(DevclusterError) as caught:
        preflight.check_machine(node_cpu=100_000)
    complaint = str(caught.value)
    for words in ("sudo", "apt-get install some-package", "node_cpu 100000", "hidden on the nodes", "blank"):
        assert words in complaint


def test_a_service_that_nobody_asked_for_is_not_started(tmp_path):
    """The unit points at nothing, which is how systemd is told; one that an administrator made stays."""
    preflight.mask(tmp_path / "some.service")
    assert (tmp_path / "some.service").readlink() == Path("/dev/null")
    (tmp_path / "own.service").write_text("[Service]")
    preflight.mask(tmp_path / "own.service")
    assert (tmp_path / "own.service").read_text() == "[Service]"


def test_a_cluster_starts_without_what_only_tests_and_images_need(monkeypatch):
    """Prometheus is none of a cluster's business."""
    monkeypatch.setattr(preflight.shutil, "which", lambda *_, **__: None)
    with pytest.raises(DevclusterError) as caught:
        preflight.check_machine()
    assert "crun" in str(caught.value)
    assert "prometheus" not in str(caught.value)


@pytest.mark.parametrize(("before", "after"), [("128\n", "8192"), ("100000\n", "100000\n")], ids=["low", "high"])
def test_the_inotify_limit_is_only_ever_raised(tmp_path, before, after):
    """A machine that is set up for more keeps its value."""
    limit = tmp_path / "max_user_instances"
    limit.write_text(before)
    preflight.raise_inotify_limit(print, limit)
    assert limit.read_text() == after
