"""Locks between processes: one holder at a time, and none after its process is gone."""

import subprocess
import sys

from devcluster import locks

HOLDER = """
import pathlib, sys
from devcluster import locks
file = locks.acquire(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_has_one_holder_and_dies_with_it(tmp_path):
    """Held by another process it is refused; after that process was killed it is free."""
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        assert locks.is_held(path)
        assert locks.acquire(path, seconds=0.05) is None
    finally:
        holder.kill()
        holder.communicate()
    assert not locks.is_held(path)
    with locks.waiting(path, print, "testing"):
        assert locks.is_held(path)


def test_waiting_says_once_what_it_waits_for(tmp_path):
    """And goes on as soon as the holder is gone."""
    path, said = tmp_path / "lock", []
    holder = locks.acquire(path)

    def note(line):
        said.append(line)
        holder.close()

    with locks.waiting(path, note, "building"):
        assert said == ["another process is building; waiting for it"]
