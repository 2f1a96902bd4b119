"""`python -m devcluster`: the cluster from the command line. Failures are one message and exit status 1."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from devcluster import binaries, images, preflight, state
from devcluster.cluster import Cluster, in_use, names
from devcluster.config import ClusterConfig, parse_accelerators
from devcluster.errors import DevclusterError
from devcluster.kubeapi import ApiError

_DEFAULTS = ClusterConfig()


def say(line: str) -> None:
    """Progress for a person: standard error, so that output can be piped."""
    print(line, file=sys.stderr, flush=True)


def up(options: argparse.Namespace) -> None:
    """Start a cluster that outlives this command."""
    cluster = Cluster(
        options.name,
        say,
        nodes=0 if options.control_plane_only else options.nodes,
        node_memory=options.node_memory,
        node_cpu=options.node_cpu,
        accelerators=parse_accelerators(options.accelerators),
        grace_seconds=options.grace_seconds,
        toleration_seconds=options.toleration_seconds,
    )
    found = state.read(cluster.directory)
    if found is not None and found.running() and found.config == cluster.settings:
        say(f"cluster {options.name!r} is already up")
    else:
        cluster.up()
    say(f"export KUBECONFIG={cluster.kubeconfig}; kubectl: {cluster.kubectl}")


def down(options: argparse.Namespace) -> None:
    """Stop a cluster, or clean up after one."""
    Cluster(options.name, say).down()


def status(_: argparse.Namespace) -> None:
    """One line per cluster and node."""
    for name in names():
        try:
            cluster = Cluster.attach(name)
        except DevclusterError:
            what = "starting or stopping" if in_use(name) else "left over; `up` or `down` of that name removes it"
            print(f"{name}: {what}")
            continue
        ready = cluster.api.ready_nodes() if cluster.api.ready() else set()
        print(f"{name}: {'API server ready' if cluster.api.ready() else 'API server not ready'}, {cluster.kubeconfig}")
        for node in cluster.nodes:
            power = "on" if node.machine.is_on else "off"
            print(f"  {node.name} {node.ip}: {power}, {'Ready' if node.name in ready else 'not Ready'}")


def kubeconfig(options: argparse.Namespace) -> None:
    """Print the path of the kubeconfig."""
    print(Cluster.attach(options.name).kubeconfig)


def load(options: argparse.Namespace) -> None:
    """Give the nodes the images that were built since, and those of docker or OCI archives."""
    Cluster.attach(options.name, say).load_images(options.archives)


def node(options: argparse.Namespace) -> None:
    """Switch a node off or on, cut it off or reconnect it."""
    target = Cluster.attach(options.name, say).node(options.node)
    actions: dict[str, Callable[[], None]] = {
        "off": target.off,
        "on": target.on,
        "partition": target.partition,
        "heal": target.heal,
    }
    actions[options.verb]()


def chaos(options: argparse.Namespace) -> int:
    """Do faults to a running job, its nodes or the operator, and report what that cost."""
    from devcluster import chaos as faults  # the operator's command line, which the rest does without
    from llmtrain_operator.chaos.run import Terms
    from llmtrain_operator.cli.chaos import Wish

    if unknown := set(options.fault) - {*faults.NAMES}:
        raise DevclusterError(f"{', '.join(sorted(unknown))}: no such fault; there are {', '.join(faults.NAMES)}")
    terms = Terms(options.member, options.seconds, options.patience)
    wish = Wish(options.job, tuple(options.fault), options.faults, options.seed, options.pause, terms)
    return faults.run(Cluster.attach(options.name, say), options.namespace, wish, as_json=options.json)


def execute(options: argparse.Namespace) -> None:
    """Become a program on a node or beside the control plane."""
    cluster = Cluster.attach(options.name)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    argv = [*cluster.enter(options.place), *(command or ["bash"])]
    os.execvpe(argv[0], argv, {**os.environ, **cluster.environment()})


def build_binaries(_: argparse.Namespace) -> None:
    """Build and cache the binaries."""
    say(json.dumps({"PATH": binaries.ensure(say).search_path}))


def build_images(options: argparse.Namespace) -> None:
    """Build the operator's and the trainer's image where their sources have changed."""
    images.build(options.targets or images.TARGETS, say)


def setup(_: argparse.Namespace) -> None:
    """Install the Debian packages that are missing."""
    preflight.install_packages(say)
    binaries.find_go()


def browser(_: argparse.Namespace) -> None:
    """Install the browser that tests of the live page drive."""
    preflight.install_packages(say, preflight.BROWSER)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="python -m devcluster", description="A real Kubernetes cluster on this machine.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, action: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=(action.__doc__ or "").splitlines()[0])
        command.set_defaults(action=action)
        return command

    def named(name: str, action: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
        command = add(name, action)
        command.add_argument("--name", default=_DEFAULTS.name, help="which cluster (default: %(default)s)")
        return command

    _add_up_options(named("up", up))
    named("down", down)
    add("status", status)
    named("kubeconfig", kubeconfig)
    named("load", load).add_argument("archives", nargs="*", type=Path, metavar="TAR")
    power = named("node", node)
    power.add_argument("verb", choices=["off", "on", "partition", "heal"])
    power.add_argument("node", metavar="NODE")
    _add_chaos_options(named("chaos", chaos))
    inside = named("exec", execute)
    inside.add_argument("place", metavar="NODE|cp")
    inside.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD")
    add("binaries", build_binaries)
    add("images", build_images).add_argument("targets", nargs="*", metavar="operator|trainer")
    add("setup", setup)
    add("browser", browser)
    return top


def _add_up_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--nodes", type=int, default=_DEFAULTS.nodes, help="number of nodes (default: %(default)s)")
    command.add_argument("--control-plane-only", action="store_true", help="no nodes: for tests of the API alone")
    command.add_argument(
        "--accelerators",
        action="append",
        default=[],
        metavar="RESOURCE=COUNT",
        help="made-up resource that every node advertises, as nvidia.com/gpu=2; repeatable",
    )
    command.add_argument("--node-memory", default=_DEFAULTS.node_memory, help="memory of a node (default: %(default)s)")
    command.add_argument("--node-cpu", type=int, default=_DEFAULTS.node_cpu, help="cores of a node (default: all)")
    command.add_argument(
        "--grace-seconds", type=int, default=_DEFAULTS.grace_seconds, help="silence until NotReady (%(default)s)"
    )
    command.add_argument(
        "--toleration-seconds", type=int, default=_DEFAULTS.toleration_seconds, help="then until eviction (%(default)s)"
    )


def _add_chaos_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("job", metavar="JOB")
    command.add_argument("fault", nargs="*", metavar="FAULT", help="kinds to draw from (default: all)")
    command.add_argument("--namespace", "-n", default="default", help="the job's (default: %(default)s)")
    command.add_argument("--faults", type=int, default=1, help="how many (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="the same seed draws the same faults (%(default)s)")
    command.add_argument("--member", type=int, metavar="INDEX", help="only this one (default: drawn each time)")
    command.add_argument("--pause", type=float, default=5.0, help="most seconds between them (default: %(default)s)")
    command.add_argument("--seconds", type=float, default=10.0, help="how long one lasts that ends (%(default)s)")
    command.add_argument("--patience", type=float, default=300.0, help="seconds to get over one (%(default)s)")
    command.add_argument("--json", action="store_true", help="print the report as JSON")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    options = parser().parse_args(argv)
    try:
        return options.action(options) or 0
    except (DevclusterError, ApiError) as error:
        print(f"devcluster: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
