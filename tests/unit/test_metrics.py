"""What a scrape shows, through the real HTTP server and the real text parser."""

import re
import time

import aiohttp
import pytest

from llmtrain_operator.api import (
    CheckpointStatus,
    Condition,
    FlashStatus,
    IncidentStatus,
    JobStatus,
    LeavingNodeStatus,
    MemberStatus,
    ProgressStatus,
    RoundStatus,
    StragglerStatus,
)
from llmtrain_operator.conditions import seconds
from llmtrain_operator.http import serve
from llmtrain_operator.metrics import Metrics
from llmtrain_operator.metrics.jobs import SERIES_PER_JOB
from llmtrain_operator.metrics.training import members_by_state
from tests.support.metrics import DOCUMENT, SCRAPES, TIME, eventful, families, samples, table

LABELS = {
    "namespace",
    "job",
    "rank",
    "state",
    "cause",
    "reason",
    "phase",
    "tier",
    "type",
    "result",
    "verb",
    "resource",
    "code",
    "le",
    "member",
}


def scrape(metrics: Metrics) -> dict[str, dict[tuple, float]]:
    return samples(metrics.text())


def running(step: int) -> JobStatus:
    member = MemberStatus(index=0, incarnation=1, pod="a-0-1", uid="u", host="a-0", store_port=1)
    return JobStatus(
        state="Running",
        round=RoundStatus(number=1, procs_per_member=1, members=(member,), started_at="2026-01-01T00:00:00Z"),
        progress=ProgressStatus(step=step, max_steps=100, loss=2.5),
        restarts=2,
        spares=1,
        ledger={"productive": 30.0, "starting": 10.0, "suspended": 100.0},
    )


def test_a_jobs_numbers_are_shown_under_namespace_and_name():
    metrics = Metrics()
    metrics.job("ns", "a", running(7))
    metrics.job("ns", "b", JobStatus())
    shown = scrape(metrics)
    assert shown["llmtrain_job_step"] == {("a", "ns"): 7}
    assert shown["llmtrain_job_loss"] == {("a", "ns"): 2.5}
    assert shown["llmtrain_job_members"] == {("a", "ns"): 1, ("b", "ns"): 0}
    assert shown["llmtrain_job_spares"] == {("a", "ns"): 1}
    assert shown["llmtrain_job_restarts_total"] == {("a", "ns"): 2, ("b", "ns"): 0}
    assert shown["llmtrain_job_goodput_ratio"] == {("a", "ns"): 0.75}
    assert shown["llmtrain_job_time_seconds_total"]["starting", "a", "ns"] == 10
    assert shown["llmtrain_jobs"]["Running",] == shown["llmtrain_jobs"]["Pending",] == 1
    assert shown["llmtrain_jobs"]["Failed",] == 0


def test_only_stragglers_that_were_found_are_shown():
    """By rank; one that is merely watched may be in order a moment later."""
    metrics = Metrics()
    slow = StragglerStatus(member=1, rank=3, node="n1", factor=1.6, since="2026-01-01T00:00:00Z", step=7, found=True)
    watched = slow.model_copy(update={"rank": 4, "found": False})
    metrics.job("ns", "a", running(7).model_copy(update={"stragglers": (slow, watched)}))
    assert scrape(metrics)["llmtrain_job_straggler_ratio"] == {("a", "ns", "3"): 1.6}


def test_a_forgotten_job_leaves_no_series_behind():
    metrics = Metrics()
    metrics.job("ns", "a", running(7))
    metrics.forget("ns", "a")
    metrics.forget("ns", "a")
    assert b'job="a"' not in metrics.text()


def test_passes_waits_calls_and_depth_are_counted():
    metrics = Metrics()
    metrics.observe_pass("ns/a", 0.01, 0.02, True)
    metrics.observe_pass("ns/a", 0.01, 0.03, False)
    metrics.observe_call("patch", "llmtrainjobs", "409")
    metrics.observe_throttle(0.5)
    metrics.begin_term(lambda: 3)
    shown = scrape(metrics)
    assert shown["llmtrain_kubernetes_throttled_seconds_total"] == {(): 0.5}
    assert shown["llmtrain_reconcile_duration_seconds_count"] == {("success",): 1, ("error",): 1}
    assert shown["llmtrain_queue_wait_seconds_count"] == {(): 2}
    assert shown["llmtrain_kubernetes_requests_total"] == {("409", "llmtrainjobs", "patch"): 1}
    assert shown["llmtrain_queue_depth"] == {(): 3}


def test_only_the_leader_shows_jobs():
    """Else each would be counted once per replica that ever led."""
    metrics = Metrics()
    assert scrape(metrics)["llmtrain_leader"] == {(): 0}
    metrics.begin_term(lambda: 3)
    metrics.job("ns", "a", running(7))
    assert scrape(metrics)["llmtrain_leader"] == {(): 1}
    metrics.end_term()
    assert b'job="a"' not in metrics.text()
    assert (scrape(metrics)["llmtrain_leader"], scrape(metrics)["llmtrain_queue_depth"]) == ({(): 0}, {(): 0})


def test_names_follow_the_rules():
    """Prefix llmtrain_ or process_, base units, and no label that grows without bound."""
    for family in (family for scraped in SCRAPES.values() for family in families(scraped())):
        assert re.fullmatch(r"(llmtrain|process)_[a-z_]+", family.name)
        assert family.documentation
        assert not re.search(r"(milliseconds|minutes|percent|megabytes)", family.name)
        for sample in family.samples:
            assert set(sample.labels) <= LABELS


def test_the_series_of_a_job_are_bounded():
    """One to which everything has happened has exactly as many as are promised at most; and those are one page."""
    metrics = Metrics()
    metrics.job("ns", "a", eventful())
    found = [sample for family in families(metrics.text()) for sample in family.samples if "job" in sample.labels]
    assert len(found) == SERIES_PER_JOB < 120
    metrics.job("ns", "b", JobStatus())
    fresh = [
        sample for family in families(metrics.text()) for sample in family.samples if sample.labels.get("job") == "b"
    ]
    assert len(fresh) < 20


async def test_a_thousand_jobs_are_scraped_and_forgotten():
    """Through HTTP, compressed as Prometheus asks for it."""
    metrics, status = Metrics(), eventful()
    for number in range(1000):
        metrics.job(f"team-{number % 20}", f"job-{number}", status)
    async with serve(0, metrics, str) as port, aiohttp.ClientSession(auto_decompress=False) as session:
        url = f"http://127.0.0.1:{port}/metrics"
        began = time.perf_counter()
        async with session.get(url, headers={"Accept-Encoding": "gzip"}) as response:
            packed = await response.read()
            assert response.headers["Content-Encoding"] == "gzip"
        took = time.perf_counter() - began
        async with session.get(url, headers={"Accept-Encoding": "identity"}) as response:
            lines = (await response.read()).splitlines()
    count = sum(line.startswith(b"llmtrain_job_") for line in lines)
    print(f"\n1,000 jobs: {count:,} series, {len(packed) / 1e6:.2f} MB packed, scraped in {took:.2f} s")
    assert count == 1000 * SERIES_PER_JOB
    assert len(packed) < 10**6
    for number in range(1000):
        metrics.forget(f"team-{number % 20}", f"job-{number}")
    assert b"llmtrain_job_step{" not in metrics.text()


def test_what_a_status_says_is_shown():
    """A word of each table: safety, conditions, incidents."""
    metrics = Metrics(lambda: seconds(TIME) + 90)
    metrics.job("ns", "a", eventful())
    shown = scrape(metrics)
    one = ("a", "ns")
    assert shown["llmtrain_job_replica_lag_steps"] == {one: 1}
    assert shown["llmtrain_job_checkpoint_age_seconds"] == {one: 90}
    assert shown["llmtrain_job_restore_seconds"] == {(*one, "peer"): 0.7}
    assert shown["llmtrain_job_condition"][*one, "ObjectivesMet"] == 1
    assert shown["llmtrain_job_incidents_total"]["a", "ns", "Hang"] == 1
    assert shown["llmtrain_job_lost_steps_total"] == {one: 2}
    assert shown["llmtrain_job_seconds_left"] == {one: 46.5}


def test_phases_of_a_recovery_add_up():
    """The status counts each from the fault; stacked they have to be the time without training."""
    metrics = Metrics()
    metrics.job("ns", "a", eventful())
    phases = scrape(metrics)["llmtrain_job_recovery_seconds"]
    assert phases == {("a", "ns", "detect"): 1.0, ("a", "ns", "round"): 0.5, ("a", "ns", "train"): 2.5}


INCIDENT = IncidentStatus(number=1, time=TIME, kind="node", reason="PodLost", round=1)


@pytest.mark.parametrize(
    "status",
    [
        JobStatus(incidents=(INCIDENT,)),
        JobStatus(incidents=(INCIDENT.model_copy(update={"outcome": "Suspended"}),)),
        JobStatus(
            conditions=(
                Condition(type="Durable", status="Unknown", reason="NotYetSaved", last_transition_time=TIME),
                Condition(type="SomeoneElses", status="True", reason="X", last_transition_time=TIME),
            )
        ),
        JobStatus(checkpoint=CheckpointStatus(step=1, saved_at=TIME), completion_time=TIME),
        JobStatus(checkpoint=CheckpointStatus(restored_step=1, restore_seconds=0.5, restored_tier="moon")),
        JobStatus(flash=FlashStatus(step=3)),
    ],
    ids=["not-over", "never-trained-again", "unknown-condition", "ended", "unknown-tier", "nothing-committed"],
)
def test_what_is_not_known_has_no_series(status):
    """Rather than a zero."""
    metrics = Metrics()
    metrics.job("ns", "a", status)
    shown = scrape(metrics)
    for name in ("recovery_seconds", "condition", "checkpoint_age_seconds", "restore_seconds", "replica_lag_steps"):
        assert f"llmtrain_job_{name}" not in shown


def test_what_may_happen_again_and_again_is_counted_from_zero():
    """A counter that begins with 1 shows no increase, and the first hang would raise no alarm."""
    metrics = Metrics()
    metrics.job("ns", "a", JobStatus(incident_counts={"OutOfMemory": 1, "written by hand": 9}))
    counts = {reason: count for (_, _, reason), count in scrape(metrics)["llmtrain_job_incidents_total"].items()}
    assert counts == {
        "Hang": 0,
        "Killed": 0,
        "LossSpike": 0,
        "NonFiniteLoss": 0,
        "OutOfMemory": 1,
        "PeerLost": 0,
        "PodLost": 0,
        "UserError": 0,
    }


def member(index: int) -> MemberStatus:
    return MemberStatus(index=index, incarnation=1, pod="p", uid=f"u{index}", host="h", store_port=1)


ROUND = RoundStatus(number=1, procs_per_member=1, members=(member(0), member(1), member(2)), started_at=TIME)
TRAINING = ProgressStatus(phase="training")
LEAVING = (LeavingNodeStatus(name="n", taint="t", pods=("u1", "gone")),)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (JobStatus(replicas=2), {"joining": 2}),
        (JobStatus(replicas=3, round=ROUND), {"starting": 3}),
        (JobStatus(replicas=4, round=ROUND, progress=TRAINING), {"training": 3, "joining": 1}),
        (
            JobStatus(
                replicas=3, spares=2, round=ROUND, progress=ProgressStatus(phase="saving"), leaving_nodes=LEAVING
            ),
            {"training": 2, "leaving": 1, "spare": 2},
        ),
        (JobStatus(replicas=1, round=ROUND, progress=TRAINING), {"training": 3}),
    ],
    ids=["no-round", "loading", "one-waits", "one-leaves", "some-have-ended"],
)
def test_members_by_state(status, expected):
    """As far as the status tells."""
    assert {state: count for state, count in members_by_state(status).items() if count} == expected


@pytest.mark.parametrize("which", SCRAPES)
def test_the_docs_list_every_series(which):
    """`python -m tests.support.metrics` writes the tables."""
    assert table(which) in DOCUMENT.read_text()


def test_the_docs_say_how_many_there_are_at_most():
    """Of the operator's per job, and of a member's."""
    text, member = DOCUMENT.read_text(), list(families(SCRAPES["member"]()))
    count = sum(len(family.samples) for family in member)
    assert f"at most {SERIES_PER_JOB} series" in text
    assert f"a member has {count} at most" in text


@pytest.mark.parametrize(
    ("path", "missing", "status", "text"),
    [
        ("/healthz", "caches not synced", 200, "ok"),
        ("/readyz", "caches not synced", 503, "caches not synced"),
        ("/readyz", "", 200, "ok"),
        ("/metrics", "", 200, "llmtrain_jobs"),
    ],
    ids=["alive-while-unready", "unready-says-why", "ready", "metrics"],
)
async def test_http_endpoints(path, missing, status, text):
    async with (
        serve(0, Metrics(), lambda: missing) as port,
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}") as response,
    ):
        assert response.status == status
        assert text in await response.text()
