"""Where packages come from on this machine, handed on to the image build.

People behind a mirror or a proxy have told pip, uv or apt about it already; the build inside the image must not need
to be told again. Proxies need nothing: buildah and apt read http_proxy from the environment themselves.
"""

import configparser
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

SUITE = "bookworm"
SYSTEM_CA = Path("/etc/ssl/certs/ca-certificates.crt")

# pip's option -> uv's, and whether it is a list.
_OPTIONS = {
    "index-url": ("index-url", False),
    "extra-index-url": ("extra-index-url", True),
    "find-links": ("find-links", True),
    "trusted-host": ("allow-insecure-host", True),
}


def pip_settings(environment: Mapping[str, str], files: list[Path]) -> dict[str, list[str]]:
    """pip's package sources, option -> values: the configuration files in order, then PIP_* of the environment.

    Local directories are left out: they do not exist inside the build.
    """
    settings: dict[str, list[str]] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        parser.read(file)
        for section in ("global", "install"):
            for key in _OPTIONS:
                if value := parser.get(section, key, fallback=""):
                    settings[key] = value.split()
    for key in _OPTIONS:
        if value := environment.get("PIP_" + key.upper().replace("-", "_")):
            settings[key] = value.split()
    remote = {key: [v for v in values if key == "trusted-host" or "://" in v] for key, values in settings.items()}
    return {key: values for key, values in remote.items() if values}


def uv_settings(environment: Mapping[str, str], pip: Mapping[str, list[str]]) -> dict[str, str | list[str]]:
    """The same for uv, which does not read pip's settings by itself; UV_* of the environment wins."""
    settings: dict[str, str | list[str]] = {}
    for key, values in pip.items():
        name, is_list = _OPTIONS[key]
        settings[name] = values if is_list else values[0]
    for variable in ("UV_INDEX_URL", "UV_DEFAULT_INDEX"):
        if value := environment.get(variable):
            settings["index-url"] = value
    for variable in ("UV_EXTRA_INDEX_URL", "UV_INDEX"):
        if value := environment.get(variable):
            settings["extra-index-url"] = value.split()
    return settings


def write_secrets(directory: Path) -> dict[str, Path]:
    """Write the build's secrets into `directory`; returns id -> file for those that this machine has a use for."""
    environment = os.environ
    home = Path.home()
    configured = [Path("/etc/pip.conf"), home / ".pip" / "pip.conf", home / ".config" / "pip" / "pip.conf"]
    if own := environment.get("PIP_CONFIG_FILE"):
        configured.append(Path(own))
    pip = pip_settings(environment, configured)
    uv = uv_settings(environment, pip)
    found: dict[str, Path] = {}
    if pip:
        lines = ["[global]", *(f"{key} = {' '.join(values)}" for key, values in pip.items())]
        found["pip.conf"] = _private(directory / "pip.conf", "\n".join([*lines, ""]))
    if (uv_file := home / ".config" / "uv" / "uv.toml").exists():
        found["uv.toml"] = uv_file
    elif uv:
        lines = [f"{key} = {json.dumps(value)}" for key, value in uv.items()]
        found["uv.toml"] = _private(directory / "uv.toml", "\n".join([*lines, ""]))
    if (ca := Path(environment.get("SSL_CERT_FILE") or SYSTEM_CA)).exists():
        found["ca"] = ca
    return found


def debian_sources() -> list[str]:
    """apt source lines for SUITE: this machine's own if it runs that suite, else none: mmdebstrap knows Debian's."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"]
    listed = subprocess.run([*command, "Created-By: Packages"], capture_output=True, text=True, check=False).stdout
    return parse_sources(listed)


def parse_sources(listed: str) -> list[str]:
    """Source lines from `ORIGIN|REPO_URI|RELEASE|COMPONENT` lines; none unless Debian's SUITE itself is among them."""
    suites = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
    rows = [line.split("|") for line in listed.splitlines() if line.count("|") == 3]
    mine = [row for row in rows if row[0] == "Debian" and row[2] in suites and row[3] == "main"]
    if not any(row[2] == SUITE for row in mine):
        return []
    return list(dict.fromkeys(f"deb {uri} {suite} {component}" for _, uri, suite, component in mine))


def _private(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path
