"""The image of a pod's sandbox: Debian's static catatonit, which waits and reaps, as the one file of one layer."""

import platform
import shutil
from pathlib import Path

from devcluster.config import PAUSE_IMAGE
from devcluster.errors import DevclusterError
from devcluster.images import store
from devcluster.images.descriptor import Image, digest, new_config

CATATONIT = Path("/usr/bin/catatonit")


def ensure_pause() -> Image:
    """Make the pause image unless it is there with the same binary."""
    if not CATATONIT.exists():
        raise DevclusterError(f"{CATATONIT} is missing: apt-get install catatonit")
    # Not the digest of a tar, which nobody will ever see, but of what the layer consists of.
    diff_id = digest(b"/pause 0755\n" + CATATONIT.read_bytes())
    if (known := store.get(PAUSE_IMAGE)) is not None and known.diff_ids == (diff_id,):
        return known
    settings = {"Entrypoint": ["/pause", "-P"], "User": "65535:65535"}
    config = new_config([diff_id], "catatonit as /pause", platform.machine(), **settings)
    store.add_layer(diff_id, _fill)
    image = Image(PAUSE_IMAGE, config, key=diff_id)
    store.put(image)
    return image


def _fill(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o755)
    shutil.copyfile(CATATONIT, directory / "pause")
    (directory / "pause").chmod(0o755)
