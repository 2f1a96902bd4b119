"""What the job was rolled back from, as the agent tells it to the workers of a round."""

from __future__ import annotations

import os

from llmtrain_operator.contract import codec, names, wire


def avoid() -> wire.Avoid:
    """Nothing, where nobody tells."""
    given = os.environ.get(names.ENV_AVOID)
    return codec.decode(wire.Avoid, given) if given else wire.NOTHING
