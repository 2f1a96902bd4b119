"""Members that hand out their memory until one of them has written it to storage."""

import time

import pytest

from llmtrain_operator.contract.wire import Member, Round
from llmtrain_trainer.agent.lastgasp import _wait
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.storage import open_storage
from llmtrain_trainer.flash.server import Server
from llmtrain_trainer.flash.store import Store

PATIENCE = 20.0


@pytest.fixture
def writer(tmp_path):
    """The agent of the member that writes."""
    server = Server(Store(tmp_path, "job"), "127.0.0.1", {1: "key"}.get)
    server.start()
    yield server
    server.close()


def round_of(server):
    members = tuple(Member(n, 1, f"j-{n}-1", f"u{n}", "127.0.0.1", 1, server.port) for n in range(2))
    return Round(1, members, 1, key="key")


def test_who_waits_ends_with_who_writes(writer, tmp_path):
    """There may be nothing that is newer than what storage has: nobody waits out the grace period for it."""
    (tmp_path / "c").mkdir()
    catalog = Catalog(open_storage(f"file://{tmp_path}/c"))
    began = time.monotonic()
    _wait(catalog, round_of(writer), "u0", began + 1)
    assert time.monotonic() - began >= 1
    writer.close()
    began = time.monotonic()
    _wait(catalog, round_of(writer), "u0", began + PATIENCE)
    assert time.monotonic() - began < PATIENCE / 2
