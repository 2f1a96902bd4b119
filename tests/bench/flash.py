"""`make bench-flash`: what snapshots in memory cost, beside a memcpy of the same bytes and beside what others do.

Two workers with an agent each, in two network namespaces with a cable between them. All contenders run in turn in one
run, with the memory freed between; a figure is that of the slower worker, ratios are to medians measured in the same
repetitions. Stall is copy and publish: how long training stands still. Nothing fails on a slow machine; the table says
what was met.

Must be run as root with `python -P`: next to this file, `import operator` would find it, not the standard library's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import click

from llmtrain_operator.contract import names
from tests.bench import dlrover_env
from tests.bench.report import ROOT, Row, clean_up_on_sigterm, publish

WORKERS: Final = 2
PATIENCE: Final = 540.0
MEMORY: Final = Path("/dev/shm")
KEY: Final = "bench"
CASES: Final = ((0.5, 1), (1.0, 1), (2.0, 0))
"""Gigabytes of state per worker, and copies."""


class Net:
    """Two network namespaces and a cable: `prefix` runs a command in one, `hosts` are their addresses."""

    def __init__(self) -> None:
        self._names = [f"llmtrain-bench-{os.getpid()}-{number}" for number in range(WORKERS)]
        self.hosts = [f"10.213.77.{number + 1}" for number in range(WORKERS)]

    def prefix(self, rank: int) -> list[str]:
        return ["ip", "netns", "exec", self._names[rank]]

    def __enter__(self) -> Net:
        one, other = self._names
        for name in self._names:
            _ip(f"netns add {name}")
        _ip(f"link add veth0 netns {one} type veth peer name veth0 netns {other}")
        for name, host in zip(self._names, self.hosts, strict=True):
            _ip(f"-n {name} addr add {host}/24 dev veth0")
            _ip(f"-n {name} link set veth0 up")
            _ip(f"-n {name} link set lo up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            _ip(f"netns del {name}")


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


@contextlib.contextmanager
def agents(net: Net, folder: Path, replicas: int) -> Iterator[None]:
    """The flash part of two agents, in the round."""
    running: list[subprocess.Popen[str]] = []
    try:
        for rank in range(WORKERS):
            (folder / str(rank)).mkdir()
            script = ROOT / "tests" / "support" / "flash_agent.py"
            arguments = [str(script), str(folder), str(rank), net.hosts[rank], str(replicas), "bench"]
            command = [*net.prefix(rank), sys.executable, "-P", *arguments]
            running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for agent in running:
            _answer(agent.stdout)
        for agent in running:
            assert agent.stdin is not None
            agent.stdin.write(f"1 {KEY} {WORKERS}\n")
            agent.stdin.flush()
            _answer(agent.stdout)
        yield
    finally:
        for agent in running:
            assert agent.stdin is not None
            agent.stdin.close()
            agent.wait(10)


def _answer(stream: IO[str] | None) -> None:
    assert stream is not None
    if stream.readline() != "ok\n":
        raise SystemExit("an agent did not start")


def measure(net: Net, gigabytes: float, replicas: int, *, engine: bool = False) -> dict[str, Any]:
    """Run two workers with so much state each; what rank 0 tells (figures are of the slower one)."""
    with tempfile.TemporaryDirectory(prefix="llmtrain-bench-", dir=MEMORY) as name:
        folder = Path(name)
        with agents(net, folder, replicas):
            workers = []
            for rank in range(WORKERS):
                environment = os.environ | {
                    "RANK": str(rank),
                    "LOCAL_RANK": "0",
                    "WORLD_SIZE": str(WORKERS),
                    "LOCAL_WORLD_SIZE": "1",
                    "MASTER_ADDR": net.hosts[0],
                    "MASTER_PORT": "29777",
                    "GLOO_SOCKET_IFNAME": "veth0",
                    "OMP_NUM_THREADS": "1",
                    "DS_ACCELERATOR": "cpu",
                    "CUDA_VISIBLE_DEVICES": "",
                    names.ENV_JOB_UID: "bench",
                    names.ENV_ROUND: "1",
                    names.ENV_FLASH: str(folder / str(rank)),
                    names.ENV_FLASH_SOCKET: str(folder / f"{rank}.notices"),
                    names.ENV_FLASH_ADDRESS: (folder / f"{rank}.address").read_text().replace(" ", ":"),
                    names.ENV_FLASH_KEY: KEY,
                }
                script = Path(__file__).with_name("flash_engine.py" if engine else "flash_worker.py")
                arguments = [str(script), str(folder), str(rank), net.hosts[rank], str(gigabytes), str(replicas)]
                command = [*net.prefix(rank), sys.executable, "-P", *arguments]
                workers.append(subprocess.Popen(command, env=environment))
            try:
                for worker in workers:
                    if worker.wait(PATIENCE):
                        raise SystemExit(f"a worker ended with {worker.returncode}")
            finally:
                for worker in workers:
                    worker.kill()
                    worker.wait()
        told: dict[str, Any] = json.loads((folder / "0.json").read_text())
        told["overhead"] = max(json.loads((folder / f"{rank}.json").read_text())["overhead"] for rank in range(WORKERS))
        return told


def ratios(told: dict[str, Any], what: str, other: str) -> list[float]:
    return [mine / its for mine, its in zip(told[what], told[other], strict=False)]


def _most(values: list[float]) -> float:
    """The 99th percentile, which of so few is the largest."""
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def rows(told: dict[str, Any], replicas: int) -> list[Row]:
    """The figures of one size."""
    size, memcpy = told["size"], statistics.median(told["memcpy"])
    label = f"{size / 1e9:.1f} GB, {replicas} copies"
    stalls = ratios(told, "snapshot", "memcpy")
    middle, last = statistics.median(stalls), _most([each / memcpy for each in told["snapshot"]])
    speed = f"memcpy {memcpy * 1e3:.0f} ms, {size / memcpy / 1e9:.1f} GB/s"
    first = told["first"] / statistics.median(told["snapshot"])
    local = statistics.median(told["restore_local"]) / memcpy
    over = told["overhead"] / size
    found = [
        Row(f"{label}: stall / memcpy, median", middle, "x", "<= 1.2", middle <= 1.2, speed),
        Row(f"{label}: stall / memcpy, p99", last, "x", "<= 1.5", last <= 1.5, f"{len(stalls)} snapshots"),
        Row(f"{label}: first / later", first, "x", "<= 1.5", first <= 1.5, f"memory ready in {told['reserve']:.1f} s"),
        Row(f"{label}: local restore / memcpy", local, "x", "<= 2", local <= 2, "every byte proved and in place"),
        Row(f"{label}: memory beyond slots", over, "x", "<= 0.05", over <= 0.05, "of the state, in a worker"),
    ]
    if not replicas:
        return found
    peer = statistics.median(its / mine for mine, its in zip(told["restore_peer"], told["tcp"], strict=True))
    tcp = f"plain TCP {size / statistics.median(told['tcp']) / 1e9:.2f} GB/s between the namespaces"
    device, cpu = told["device_bound"] - 1, told["cpu_bound"] - 1
    away = f"copied to the buddy in {statistics.median(told['replicate']):.2f} s behind training's back"
    emulated = "a step of 50 memcpys that leaves the CPU idle (emulated by a sleep)"
    found += [
        Row(f"{label}: restore from a peer / TCP", peer, "x", ">= 0.6", peer >= 0.6, tcp),
        Row(f"{label}: device-bound slow-down", device * 100, "%", "<= 3", device <= 0.03, emulated),
        Row(f"{label}: CPU-bound slow-down", cpu * 100, "%", "", None, f"a step of {told['cpu_step']:.0f} s; {away}"),
    ]
    mine = statistics.median(told["snapshot"])
    for key, title in (("torch_save", "torch.save"), ("dcp_async", "DCP async_save")):
        its = statistics.median(told[key])
        found.append(Row(f"{label}: {title} / ours, stall", its / mine, "x", "> 1", its > mine, f"{its * 1e3:.0f} ms"))
    return found


def engine_rows(told: dict[str, Any]) -> list[Row]:
    """A real DeepSpeed engine, ZeRO 2: our snapshot of it and its own save."""
    memcpy = statistics.median(told["memcpy"])
    middle = statistics.median(ratios(told, "snapshot", "memcpy"))
    mine, its = statistics.median(told["snapshot"]), statistics.median(told["deepspeed"])
    label = f"DeepSpeed engine, ZeRO 2, {told['size'] / 1e9:.1f} GB"
    return [
        Row(f"{label}: stall / memcpy", middle, "x", "<= 1.2", middle <= 1.2, f"memcpy {memcpy * 1e3:.0f} ms"),
        Row(f"{label}: save_checkpoint / ours", its / mine, "x", "> 1", its > mine, f"{its * 1e3:.0f} ms"),
    ]


def dlrover_rows(told: dict[str, Any], mine: float) -> list[Row]:
    """DLRover's flash checkpoint of as many bytes, in its own environment. `mine`: our stall in seconds."""
    memcpy, later, first = told["memcpyMedian"], told["saveMedian"], told["firstSave"]
    label = f"DLRover flash, {told['bytesPerWorker'] / 1e9:.1f} GB"
    faster = later / mine
    return [
        Row(f"{label}: stall / ours", faster, "x", "> 1", faster > 1, f"{later * 1e3:.0f} ms"),
        Row(f"{label}: stall / its memcpy", later / memcpy, "x", "", None, f"memcpy {memcpy * 1e3:.0f} ms"),
        Row(f"{label}: first / later", first / later, "x", "", None, f"first {first * 1e3:.0f} ms"),
    ]


@click.command()
@click.option("--quick", is_flag=True, help="The smallest size alone.")
@click.option(
    "--dlrover/--no-dlrover", default=True, help="Whether to run DLRover too: 3 GB to download the first time."
)
def main(quick: bool, dlrover: bool) -> None:
    """Measure flash checkpoints."""
    if shutil.disk_usage(MEMORY).free < 14e9 and not quick:
        raise SystemExit("14 GB of free memory are needed")
    clean_up_on_sigterm()
    found: list[Row] = []
    try:
        with Net() as net:
            for gigabytes, replicas in CASES[:1] if quick else CASES:
                told = measure(net, gigabytes, replicas)
                found += rows(told, replicas)
                if dlrover and replicas:
                    mine = statistics.median(told["snapshot"])
                    found += dlrover_rows(dlrover_env.measure(told["size"], WORKERS, 15)["summary"], mine)
            found += engine_rows(measure(net, 0.5, 0, engine=True))
    finally:
        publish("flash", found)  # what there is: a size that was measured stays measured


if __name__ == "__main__":
    main()
