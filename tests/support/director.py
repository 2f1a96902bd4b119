"""Plays the controller on one machine: a real coordinator process, real agent processes, and rounds by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmtrain_operator.contract import names, wire
from llmtrain_operator.link import CoordinatorLink
from tests.support.loopback import certificate

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "scripts"
JOB = "ns/job"
PYTHONPATH = os.pathsep.join(str(ROOT / part) for part in ("operator", "trainer_image", "."))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def script(name: str, *args: object) -> dict[str, Any]:
    """A spec whose workers run one of our scripts."""
    return {"entrypoint": {"script": str(SCRIPTS / name), "args": [str(a) for a in args]}}


class Director:
    """Start agents, wait for their reports, tell them what to do. Ends everything it started on exit."""

    def __init__(self, folder: Path, deadline: float = 5.0) -> None:
        self.folder = folder
        self.deadline = deadline
        self.certificate = certificate(folder)
        self.port, self.health_port = free_port(), free_port()
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.reports: dict[str, wire.Report] = {}
        self.history: list[wire.AgentUpdate] = []
        self._directives: dict[str, wire.Directive] = {}
        self._news = asyncio.Event()
        self._control = folder / "control.sock"
        self.coordinator: subprocess.Popen[bytes] | None = None
        self.link = CoordinatorLink(self._control, self._on_update, lambda _connected: self._news.set())

    async def __aenter__(self) -> Director:
        self.start_coordinator()
        self._link_task = asyncio.create_task(self.link.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._link_task.cancel()
        await asyncio.gather(self._link_task, return_exceptions=True)
        for agent in self.agents.values():
            self._end(agent)
        self.kill_coordinator()

    def start_coordinator(self) -> None:
        options = {
            "listen": "127.0.0.1",
            "port": self.port,
            "health-port": self.health_port,
            "tls-cert": self.certificate.cert,
            "tls-key": self.certificate.key,
            "control-socket": self._control,
            "heartbeat-deadline": self.deadline,
        }
        command = [sys.executable, str(ROOT / "tests/support/coordinator_process.py")]
        command += [f"--{name}={value}" for name, value in options.items()]
        self.coordinator = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": PYTHONPATH})

    def kill_coordinator(self) -> None:
        assert self.coordinator
        self.coordinator.kill()
        self.coordinator.wait()

    def start_agent(
        self,
        index: int,
        spec: dict[str, Any],
        *,
        procs: int = 1,
        command: Sequence[str] = (sys.executable, "-u", "-m", "llmtrain_trainer.agent"),
        **more: str,
    ) -> str:
        """Start a member's agent as the operator's pod would; returns its pod UID."""
        uid = f"uid-{index}"
        token = self.folder / f"token-{index}"
        token.write_text(f"ns/job-{index}-0/{uid}")
        environment = {
            names.ENV_JOB: JOB,
            names.ENV_SPEC: json.dumps(spec),
            names.ENV_INDEX: str(index),
            names.ENV_INCARNATION: "0",
            names.ENV_POD_NAME: f"job-{index}-0",
            names.ENV_POD_UID: uid,
            names.ENV_POD_IP: "127.0.0.1",
            names.ENV_PROC_PER_NODE: str(procs),
            names.ENV_COORDINATOR: f"wss://127.0.0.1:{self.port}",
            names.ENV_COORDINATOR_CA: self.certificate.pem,
            names.ENV_TOKEN_FILE: str(token),
            names.ENV_GRACE_SECONDS: "5",
            "PYTHONPATH": PYTHONPATH,
            "OMP_NUM_THREADS": "1",
            **more,
        }
        with self.log(uid).open("ab") as log:
            self.agents[uid] = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
            )
        return uid

    def log(self, uid: str) -> Path:
        """Where an agent's output is."""
        return self.folder / f"{uid}.log"

    def run(self, number: int, *uids: str, procs: int = 1) -> wire.Round:
        """Publish round `number` of these members, in this order, from what they reported."""
        members = tuple(
            wire.Member(r.index, r.incarnation, r.pod, r.uid, r.host, r.store_port)
            for r in (self.reports[uid] for uid in uids)
        )
        round_ = wire.Round(number, members, procs)
        self.tell(wire.Directive("run", f"round {number}", round_), *uids)
        return round_

    def tell(self, directive: wire.Directive, *uids: str) -> None:
        """Publish a directive for these agents."""
        self._directives = {**self._directives, **dict.fromkeys(uids, directive)}
        self.link.publish(wire.Publish(JOB, self._directives))

    def stop(self, *uids: str) -> None:
        """Tell these agents to stop."""
        self.tell(wire.Directive("stop", "the test is over"), *uids)

    async def until(self, condition: Callable[[], object], within: float = 120.0) -> None:
        """Wait until `condition` holds, looking at each update."""
        try:
            async with asyncio.timeout(within):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            logs = "\n".join(f"--- {uid}\n{self.log(uid).read_text()[-3000:]}" for uid in self.agents)
            raise AssertionError(f"not within {within} s; reports: {self.reports}\n{logs}") from None

    async def until_state(self, state: wire.AgentState, *uids: str, number: int | None = None, within: float = 120.0):
        """Wait until all these agents report `state` (in round `number`); those that join, until they can be in one."""

        def there() -> bool:
            found = [self.reports.get(uid) for uid in uids]
            return all(r and r.state == state and (number is None or r.round == number) for r in found) and (
                state != "joining" or all(r and r.store_port for r in found)
            )

        await self.until(there, within)

    async def exit_codes(self, *uids: str, within: float = 60.0) -> list[int]:
        """Wait for these agents to end."""
        return [await asyncio.to_thread(self.agents[uid].wait, within) for uid in uids]

    async def metrics(self) -> str:
        """What the coordinator tells Prometheus."""
        url = f"http://127.0.0.1:{self.health_port}/metrics"
        answer = await asyncio.to_thread(urllib.request.urlopen, url, timeout=10)
        text: str = answer.read().decode()
        return text

    def worker_pids(self, uid: str) -> list[int]:
        """The agent's worker processes, in order of their start: its zygote's, and those that it has started itself."""
        own = _children(self.agents[uid].pid)
        zygotes = {pid for pid in own if _command(pid).startswith("llmtrain-zygote")}
        return sorted({*own, *(pid for zygote in zygotes for pid in _children(zygote))} - zygotes)

    def _on_update(self, update: wire.AgentUpdate) -> None:
        self.history.append(update)
        if update.report:
            self.reports[update.uid] = update.report
        self._news.set()

    def _end(self, agent: subprocess.Popen[bytes]) -> None:
        if agent.poll() is not None:
            return
        agent.send_signal(signal.SIGCONT)
        agent.terminate()
        try:
            agent.wait(10)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()


def _children(pid: int) -> list[int]:
    listings = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for listing in listings for child in listing.read_text().split()]


def _command(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""
