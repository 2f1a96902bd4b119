"""How torch's elastic agent comes to fork its workers from the zygote instead of starting them.

torch has no hook for that, so its function that starts a process is replaced while a round's workers are started.
Where the zygote cannot or will not fork, they are started as they always were, and the log says why.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from subprocess import Popen
from typing import cast

from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from llmtrain_trainer.agent.zygote import NotForked, Zygote

log = logging.getLogger(__name__)


@contextlib.contextmanager
def forked_from(zygote: Zygote, prefix: tuple[str, ...]) -> Iterator[None]:
    """Within this, workers are forked. `prefix`: the part of their command that the zygote does not need."""

    class Handler(SubprocessHandler):  # takes what the function that it stands in for is given
        def _popen(self, args: tuple[str, ...], env: dict[str, str]) -> Popen[bytes]:
            if args[: len(prefix)] != prefix or not self._stdout or not self._stderr:
                raise AssertionError(f"the zygote runs {' '.join(prefix)} alone")
            output = self._stdout.fileno(), self._stderr.fileno()
            try:
                return cast("Popen[bytes]", zygote.fork(args[len(prefix) :], env, output))
            except NotForked as error:
                log.warning("a worker is started anew, with all of its imports: %s", error)
                return cast("Popen[bytes]", super()._popen(args, env))

        def close(self, death_sig: signal.Signals | None = None) -> None:
            # Another process buries the worker: when it is to be signalled its group may be gone already.
            with contextlib.suppress(ProcessLookupError):
                super().close(death_sig)
                return
            for stream in (self._stdout, self._stderr):
                if stream:
                    stream.close()

    original = api.get_subprocess_handler  # type: ignore[attr-defined]
    api.get_subprocess_handler = Handler  # type: ignore[attr-defined, assignment]
    try:
        yield
    finally:
        api.get_subprocess_handler = original  # type: ignore[attr-defined]
