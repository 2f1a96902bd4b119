"""The command line: `llmtrain`, which is also `kubectl llmtrain`.

It reads and patches job objects with the user's own rights; the operator does the rest. Every error is one line that
says what to do. Exit codes: 0 done, 1 it could not be done (or the watched job failed), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import click

from llmtrain_operator.cli.chaos import chaos
from llmtrain_operator.cli.checkpoints import checkpoints
from llmtrain_operator.cli.completion import completion
from llmtrain_operator.cli.control import resume, suspend
from llmtrain_operator.cli.dashboard import dashboard
from llmtrain_operator.cli.estimate import estimate_command
from llmtrain_operator.cli.events import events
from llmtrain_operator.cli.explain import explain
from llmtrain_operator.cli.goodput import goodput
from llmtrain_operator.cli.incidents import incidents
from llmtrain_operator.cli.local import local
from llmtrain_operator.cli.logs import logs
from llmtrain_operator.cli.offline import crd, validate
from llmtrain_operator.cli.scale import scale
from llmtrain_operator.cli.simulate import simulate
from llmtrain_operator.cli.status import status
from llmtrain_operator.cli.support import support_bundle, version


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version(), prog_name="llmtrain")
def main() -> None:
    """Watch and steer language-model training jobs (LLMTrainJob) on Kubernetes."""


for _command in (
    *(status, logs, events, incidents, goodput, dashboard, explain, scale, suspend, resume, checkpoints, chaos),
    *(estimate_command, simulate, local, validate, crd, support_bundle, completion),
):
    main.add_command(_command)
