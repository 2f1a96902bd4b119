"""What a scrape shows, through the real HTTP server and the real text parser."""

import re

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmtrain_operator.api.status import JobStatus, MemberStatus, ProgressStatus, RoundStatus, StragglerStatus
from llmtrain_operator.http import serve
from llmtrain_operator.metrics import Metrics

CLOSED_LABELS = {"namespace", "job", "rank", "state", "cause", "result", "verb", "resource", "code", "le"}


def scrape(metrics: Metrics) -> dict[str, dict[tuple, float]]:
    """Sample name -> label values in order of the labels' names -> value."""
    samples: dict[str, dict[tuple, float]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = (
                sample.value
            )
    return samples


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
    metrics.begin_term(lambda: 3)
    shown = scrape(metrics)
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
    metrics = Metrics()
    metrics.job("ns", "a", running(7))
    for family in text_string_to_metric_families(metrics.text().decode()):
        assert re.fullmatch(r"(llmtrain|process)_[a-z_]+", family.name)
        assert not re.search(r"(milliseconds|minutes|percent|megabytes)", family.name)
        for sample in family.samples:
            assert set(sample.labels) <= {
                "namespace",
                "job",
                "state",
                "cause",
                "result",
                "verb",
                "resource",
                "code",
                "le",
            }


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
