"""The real coordinator with an authenticator that needs no cluster."""

import asyncio

from llmtrain_operator.coordinator.main import parse, run
from tests.support.loopback import PlainTokens

asyncio.run(run(parse(None), PlainTokens()))
