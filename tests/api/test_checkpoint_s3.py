"""Checkpoints in a real S3 server: whole objects, one creator, outages, wrong keys, damage from below."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from devcluster.pki import Authority
from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint import proof
from llmtrain_trainer.checkpoint.catalog import Catalog, Fenced, shard_name
from llmtrain_trainer.checkpoint.shardfile import ShardReader, write_shard
from llmtrain_trainer.checkpoint.storage import StorageError, open_storage, s3
from llmtrain_trainer.checkpoint.stored import manifest_name
from llmtrain_trainer.checkpoint.tool import main
from tests.support import checkpoints, damage
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server, s3_server
from tests.support.slow_link import slow_link
from tests.support.sts import token_service

STEP = "step-000000000001"
MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3") / "buckets", "checkpoints") as server:
        yield server


@pytest.fixture
def place(server) -> tuple[str, Path]:
    """A URI of its own for each test, and the directory in which its objects lie."""
    prefix = f"team/{uuid.uuid4().hex[:8]}"
    return f"s3://checkpoints/{prefix}", server.root / "checkpoints" / prefix


@pytest.fixture
def storage(server, place):
    return open_storage(place[0], server.environment)


def put(storage, name, data=b"data") -> None:
    storage.write(name, [memoryview(data)], len(data))


def failure(attempt) -> StorageError:
    with pytest.raises(StorageError) as caught:
        attempt()
    return caught.value


@contextlib.contextmanager
def seconds():
    """How long the block took, in [0] afterwards."""
    taken: list[float] = []
    begin = time.monotonic()
    yield taken
    taken.append(time.monotonic() - begin)


def test_objects_come_back_are_listed_and_go(storage):
    """Names are relative to the URI's prefix."""
    put(storage, f"{STEP}/a", b"one")
    storage.write(f"{STEP}/a", [memoryview(b"t"), memoryview(b"wo")], 3)
    put(storage, f"{STEP}/b", b"")
    put(storage, "top")
    assert storage.read(f"{STEP}/a") == b"two"
    assert [(file.name, file.size) for file in storage.list(STEP).files] == [(f"{STEP}/a", 3), (f"{STEP}/b", 0)]
    assert abs(storage.list().files[0].modified - time.time()) < 60
    assert ([file.name for file in storage.list().files], storage.list().directories) == (["top"], (STEP,))
    storage.delete([f"{STEP}/a", f"{STEP}/b", f"{STEP}/gone"])
    assert storage.list().directories == ()
    assert storage.read(f"{STEP}/a") is None
    assert storage.list("gone").files == ()


@pytest.mark.parametrize("size", [8 * MIB, 8 * MIB + 1, 37 * MIB])
def test_large_objects_are_uploaded_in_parts_and_read_in_ranges(storage, size):
    """Chunks and parts need not have the same size."""
    data = memoryview(random.Random(size).randbytes(size))
    entry = write_shard(storage, f"{STEP}/shard-00000001-00000.bin", (), data, {"rng": 1}, 5 * MIB)
    reader = ShardReader(storage, entry)
    room = bytearray(size)
    reader.read_into(0, memoryview(room))
    assert room == data
    part = bytearray(6 * MIB)
    reader.read_into(MIB + 1, memoryview(part))
    assert part == data[MIB + 1 : 7 * MIB + 1]
    assert reader.extras == {"rng": 1}


def test_ranges_beyond_the_end_are_short_and_of_nothing_are_empty(storage):
    """As with files."""
    put(storage, "a", b"0123456789")
    room = bytearray(b"....")
    assert storage.read_into("a", 3, memoryview(room)) == 4
    assert storage.read_into("a", 8, memoryview(room)) == 2
    assert room == b"8956"
    assert storage.read_into("a", 10, memoryview(room)) == 0
    assert storage.read_into("gone", 0, memoryview(room)) == 0
    put(storage, "large", bytes(range(256)) * 4 * 5120)
    room = bytearray(14 * MIB)
    assert storage.read_into("large", MIB, memoryview(room)) == 4 * MIB
    assert room[: 4 * MIB] == bytes(range(256)) * 4 * 4096


def test_of_many_creators_one_wins_and_its_content_stays(storage):
    """The server honours If-None-Match: that is what fencing stands on."""
    contents = [bytes([number]) * 1000 for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda data: storage.create("fence", data), contents))
    assert won.count(True) == 1
    assert storage.read("fence") == contents[won.index(True)]


def test_of_many_claimants_one_owns_the_storage_and_a_fenced_round_commits_nothing(server, place):
    """As with files."""
    catalogs = [Catalog(open_storage(place[0], server.environment)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda catalog: catalog.claim("a", 1), catalogs))
    assert len(set(numbers)) == 8
    committed = []
    for catalog, fence in zip(catalogs, numbers, strict=True):
        with contextlib.suppress(Fenced):
            checkpoints.save(catalog, fence, 10)
            committed.append(fence)
    assert committed == [max(numbers)]
    with pytest.raises(Fenced):
        Catalog(catalogs[0].storage).claim("a", 0)


def test_saves_are_restored_pruned_and_replaced(storage):
    """The whole way, over the network."""
    catalog = Catalog(storage)
    fence = catalog.claim("a", 1)
    for step in (10, 20, 30):
        checkpoints.save(catalog, fence, step)
    checkpoints.write_shards(storage, 40, fence, 2)
    catalog.discard(40)
    assert catalog.prune(2, 30) == ("step-000000000010",)
    checkpoints.save(catalog, catalog.claim("a", 2), 30, world_size=3, seed=5)
    assert checkpoints.restore(storage) == checkpoints.expected(30, 3, seed=5)
    assert [c.step for c in catalog.checkpoints()] == [30, 20]


@pytest.mark.parametrize("number", range(28))
def test_no_damage_is_restored_and_none_goes_unnamed(number, storage, place):
    """A sample of what is done to files, done to the server's disk."""
    catalog = Catalog(storage)
    old = catalog.claim("a", 1)
    checkpoints.save(catalog, old, 100, 2)
    checkpoints.write_shards(storage, 200, old, 2, seed=9)
    checkpoints.save(catalog, catalog.claim("a", 2), 200, 2)
    spoilt = damage.ALL[number % len(damage.ALL)](place[1] / "step-000000000200", random.Random(1000 + number))
    found = checkpoints.restore(storage)
    assert replace(found, skipped=()) == checkpoints.expected(found.step, 2)
    if found.step == 100:
        [line] = found.skipped
        assert line.split(":")[0].split("/")[1] in spoilt
    proved = {one.name.split("/")[1] for one in proof.damage(storage, catalog.checkpoint(200))}
    assert proved <= spoilt
    assert proved or found.step == 200


@pytest.mark.parametrize("wrong", [{"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, {"AWS_ACCESS_KEY_ID": "not-the-key"}])
def test_wrong_keys_are_denied_and_never_shown(wrong, server, place):
    """Neither the keys nor the signature that the server's answer repeats."""
    storage = open_storage(place[0], server.environment | wrong)
    big = memoryview(bytes(9 * MIB))
    tries = (
        storage.list,
        lambda: storage.read("a"),
        lambda: storage.read_into("a", 0, memoryview(bytearray(1))),
        lambda: put(storage, "a"),
        lambda: storage.write("a", iter([big]), len(big)),
        lambda: storage.create("a", b""),
        lambda: storage.delete(["a"]),
        lambda: Catalog(storage).claim("a", 1),
    )
    for attempt in tries:
        error = failure(attempt)
        assert error.reason == names.REASON_STORAGE_DENIED
        assert "spec.checkpoint.s3.credentials" in str(error)
        everything = "".join(traceback.format_exception(error))
        secrets = (ACCESS_KEY, SECRET_KEY, *wrong.values(), "Signature=", "AWS4")
        assert not [secret for secret in secrets if secret in everything]


def test_a_bucket_that_is_missing_vanishes_and_comes_back(server):
    """Named, and used again as soon as it is there."""
    uri = "s3://comes-and-goes/job"
    storage = open_storage(uri, server.environment)
    tries = (
        storage.list,
        lambda: storage.read("a"),
        lambda: storage.read_into("a", 0, memoryview(bytearray(1))),
        lambda: put(storage, "a"),
        lambda: storage.create("a", b""),
        lambda: storage.delete(["a"]),
    )
    for attempt in tries:
        error = failure(attempt)
        assert (error.reason, str(error)[: len(uri)]) == (names.REASON_STORAGE_MISSING, uri)
        assert "NoSuchBucket" in str(error)
    server.bucket("comes-and-goes")
    catalog = Catalog(storage)
    fence = catalog.claim("a", 1)
    checkpoints.save(catalog, fence, 10)
    server.remove_bucket("comes-and-goes")
    assert failure(lambda: checkpoints.save(catalog, fence, 20)).reason == names.REASON_STORAGE_MISSING
    server.bucket("comes-and-goes")
    checkpoints.save(catalog, fence, 30)
    assert checkpoints.restore(storage) == checkpoints.expected(30, 2)


def test_a_bucket_that_must_not_be_written_is_told_and_can_still_be_read(server, storage):
    """Right to read, no right to write."""
    catalog = Catalog(storage)
    fence = catalog.claim("a", 1)
    checkpoints.save(catalog, fence, 10)
    server.stop()
    server.start("--readonly")
    try:
        assert failure(lambda: checkpoints.save(catalog, fence, 20)).reason == names.REASON_STORAGE_DENIED
        assert checkpoints.restore(storage) == checkpoints.expected(10, 2)
    finally:
        server.stop()
        server.start()


def test_an_outage_ends_a_save_soon_and_the_next_one_works(server, storage):
    """The same client goes on when the server is back on its port; nothing half-written is taken for a checkpoint."""
    catalog = Catalog(storage)
    fence = catalog.claim("a", 1)
    checkpoints.save(catalog, fence, 10)
    server.stop()
    try:
        with seconds() as taken:
            error = failure(lambda: checkpoints.save(catalog, fence, 20))
        assert error.reason == names.REASON_STORAGE_UNREACHABLE
        assert "refuses connections" in str(error)
        assert taken[0] < 12
    finally:
        server.start()
    assert checkpoints.restore(storage) == checkpoints.expected(10, 2)
    checkpoints.save(catalog, fence, 30)
    assert checkpoints.restore(storage) == checkpoints.expected(30, 2)


def test_a_server_that_goes_in_the_middle_of_an_upload_ends_it(server, storage):
    """After a part was sent, before the last one: nothing appears under the name."""

    def parts():
        yield memoryview(bytes(8 * MIB))
        server.stop()
        for _ in range(4):
            yield memoryview(bytes(8 * MIB))

    with seconds() as taken:
        error = failure(lambda: storage.write(f"{STEP}/a", parts(), 40 * MIB))
    server.start()
    assert (error.reason, taken[0] < 30) == (names.REASON_STORAGE_UNREACHABLE, True)
    assert storage.read(f"{STEP}/a") is None


def test_a_frozen_server_ends_an_upload_within_half_a_minute(server, storage):
    """It holds its connections open and says nothing: only a clock can tell. Small requests are quicker."""
    parts = (memoryview(bytes(8 * MIB)) for _ in range(6))
    with server.frozen(), ThreadPoolExecutor(2) as pool, seconds() as taken:
        upload = pool.submit(storage.write, f"{STEP}/a", parts, 48 * MIB)
        listing = pool.submit(storage.list)
        errors = (upload.exception(), listing.exception())
    assert [error.reason for error in errors] == [names.REASON_STORAGE_UNREACHABLE] * 2
    assert all("does not answer in time" in str(error) for error in errors)
    assert taken[0] < 30
    put(storage, f"{STEP}/a")
    assert storage.read(f"{STEP}/a") == b"data"


@pytest.mark.parametrize("whole", [True, False], ids=["an object", "ranges"])
def test_a_slow_server_is_read_to_the_end(server, storage, place, monkeypatch, whole):
    """However long it takes, as long as something comes: a large checkpoint must not be cut off for its size."""
    monkeypatch.setattr(s3, "_REQUEST_SECONDS", 1.0)
    data = random.Random(1).randbytes(6 * MIB)
    put(storage, "large", data)
    with slow_link(server.port, pace=3 * MIB) as port, seconds() as taken:
        slow = open_storage(place[0], server.environment | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
        room = bytearray(len(data))
        if whole:
            room[:] = slow.read("large")
        else:
            assert slow.read_into("large", 0, memoryview(room)) == len(data)
    assert room == data
    assert taken[0] > 1.5, "else it was not slow"


def test_a_download_that_stands_still_ends(server, storage, place, monkeypatch):
    """In the middle of an object: only a clock can tell."""
    monkeypatch.setattr(s3, "_STALLED_SECONDS", 1.0)
    monkeypatch.setattr(s3, "_REQUEST_SECONDS", 1.0)
    put(storage, "large", bytes(6 * MIB))
    with slow_link(server.port, pace=50 * MIB, stalls_after=2 * MIB) as port, seconds() as taken:
        slow = open_storage(place[0], server.environment | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
        errors = [
            failure(lambda: slow.read("large")),
            failure(lambda: slow.read_into("large", 0, memoryview(bytearray(6 * MIB)))),
        ]
    assert [error.reason for error in errors] == [names.REASON_STORAGE_UNREACHABLE] * 2
    assert all("does not answer in time" in str(error) for error in errors)
    assert taken[0] < 10


def test_a_full_disk_behind_the_server_is_told_and_recovers(tmp_path):
    """A bucket on a file system of 12 MB; when there is room again the same catalog goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], check=True)
    server = S3Server(disk / "buckets")
    try:
        server.bucket("small")
        server.start()
        storage = open_storage("s3://small", server.environment)
        catalog = Catalog(storage)
        fence = catalog.claim("a", 1)
        ballast = server.root / "ballast"
        ballast.write_bytes(bytes(11 * MIB))
        error = failure(lambda: write_shard(storage, shard_name(10, fence, 0), (), memoryview(bytes(4 * MIB)), {}))
        assert error.reason == names.REASON_STORAGE_FULL
        assert storage.read(shard_name(10, fence, 0)) is None
        ballast.unlink()
        checkpoints.save(catalog, fence, 20)
        assert checkpoints.restore(storage) == checkpoints.expected(20, 2)
    finally:
        server.stop()
        subprocess.run(["umount", str(disk)], check=True)


def test_workload_identity_and_a_private_authority_need_no_keys(tmp_path, monkeypatch):
    """Keys come from a token service (a stand-in) for the service account's token; everything goes over TLS."""
    authority = Authority(tmp_path / "pki", datetime.now(UTC))
    authority.issue("server", "server", names=["127.0.0.1"])
    cert, key = (tmp_path / "pki" / f"server.{kind}" for kind in ("crt", "key"))
    token = tmp_path / "token"
    token.write_text("the-pods-token")
    server = S3Server(tmp_path / "buckets")
    server.bucket("checkpoints")
    server.start(cert=cert, key=key)
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        url, asked = stack.enter_context(token_service(cert, key, ACCESS_KEY, SECRET_KEY))
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/checkpoints")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
        error = failure(lambda: open_storage("s3://checkpoints/job").list())
        assert error.reason == names.REASON_STORAGE_DENIED
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "pki" / "ca.crt"))
        storage = open_storage("s3://checkpoints/job")
        catalog = Catalog(storage)
        checkpoints.save(catalog, catalog.claim("a", 1), 10)
        big = memoryview(bytes(20 * MIB))
        storage.write("big", iter([big[: 9 * MIB], big[9 * MIB :]]), len(big))
        assert checkpoints.restore(storage) == checkpoints.expected(10, 2)
        assert asked[0]["WebIdentityToken"] == "the-pods-token"
        assert asked[0]["RoleArn"].endswith("role/checkpoints")


def test_the_tool_takes_the_servers_address_from_the_environment(server, place, storage, monkeypatch, capsys):
    """As in a member's pod."""
    catalog = Catalog(storage)
    checkpoints.save(catalog, catalog.claim("a", 1), 10)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    assert main(["verify", place[0]]) == 0
    (place[1] / manifest_name(10)).write_bytes(b"{}")
    assert main(["verify", place[0]]) == 1
    assert "manifest.json" in capsys.readouterr().out
