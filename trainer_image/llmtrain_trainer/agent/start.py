"""The process `llmtrain-agent`: all that a training pod does, below a first process that passes signals on.

Here is what comes before the agent proper: the environment, and the zygote, which is forked as soon as there is torch.
Exit codes: 0 when the workers finished their job, 143 when it was stopped before, 2 when the environment is not that
of the operator's pods, 1 for a fault of its own.
"""

from __future__ import annotations

import logging
import os

from llmtrain_operator.contract import names
from llmtrain_trainer.agent.environment import (
    Environment,
    EnvironmentIncomplete,
    forkable,
    threads_per_worker,
)
from llmtrain_trainer.agent.redaction import redactor
from llmtrain_trainer.agent.zygote import OFF, Zygote

log = logging.getLogger(__name__)


class _WithoutSecrets(logging.Formatter):
    """Of a record's traceback too."""

    def format(self, record: logging.LogRecord) -> str:
        return redactor().text(super().format(record))


def main() -> int:
    """Entry point; returns the exit code."""
    try:
        environment = Environment.read(os.environ)
    except EnvironmentIncomplete as error:
        _begin_log()
        log.error("%s", error)  # noqa: TRY400 - the message is all there is to say
        return 2
    _prepare_workers(environment)
    import torch  # noqa: F401 - for seconds, which the zygote is spared

    program = forkable(environment.spec) if os.environ.get(names.ENV_ZYGOTE) != OFF else ()
    zygote = Zygote(os.environ, *program, of_this=True) if program else None
    # Nothing before this line is to be seen by workers, which have logs of their own.
    _begin_log()
    from llmtrain_trainer.agent.main import run

    return run(environment, zygote)


def _begin_log() -> None:
    logging.basicConfig(level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_WithoutSecrets("[agent] %(message)s"))
    logging.getLogger("websockets").setLevel(logging.WARNING)


def _prepare_workers(environment: Environment) -> None:
    """Set what the workers inherit, some of which is read when torch is first imported."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_worker(environment.procs)))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's, of which training needs nothing; each is a thread
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    # Asked in another way whether there are devices, CUDA cannot be used in what is forked afterwards.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # Ranks follow from the round: no need to exchange them through the store.
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"
    # torch's handlers raise an exception wherever the main thread is; ours leave it to the loop.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
