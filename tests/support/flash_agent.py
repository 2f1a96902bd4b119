"""The flash part of an agent alone: `python flash_agent.py FOLDER RANK HOST REPLICAS JOB`, until stdin ends.

Takes the place of a pod's agent in benchmarks and fault tests. Below FOLDER: `RANK/` is the pod's flash store,
`RANK.notices` its socket, `RANK.address` where it serves; a line `ROUND KEY WORLD` on stdin begins a round, for which
the addresses of all ranks are read, and "ok" is the answer.
"""

import sys
from pathlib import Path

from llmtrain_operator.contract import wire
from llmtrain_trainer.agent.environment import Environment
from llmtrain_trainer.agent.flash import AgentFlash


def main(folder: Path, rank: int, host: str, replicas: int, job: str) -> None:
    """Serve until stdin ends."""
    environment = Environment(
        job="ns/job",
        pod=f"pod-{rank}",
        uid=f"uid-{rank}",
        index=rank,
        incarnation=0,
        host=host,
        procs=1,
        coordinators=(),
        ca="",
        token_file=Path("/nowhere"),
        grace=1,
        spec={"checkpoint": {"flash": {"replicas": replicas}}},
        job_uid=job,
        flash=folder / str(rank),
    )
    notices = folder / f"{rank}.notices"
    notices.unlink(missing_ok=True)
    flash = AgentFlash(environment, folder / str(rank), notices)
    (folder / f"{rank}.address.new").write_text(f"{host} {flash.port}")
    (folder / f"{rank}.address.new").replace(folder / f"{rank}.address")
    print("ok", flush=True)
    for line in sys.stdin:
        number, key, world = line.split()
        members = []
        for other in range(int(world)):
            where, port = (folder / f"{other}.address").read_text().split()
            members.append(wire.Member(other, 0, f"pod-{other}", f"uid-{other}", where, 1, int(port)))
        flash.enter(wire.Round(int(number), tuple(members), 1, key=key))
        print("ok", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5])
