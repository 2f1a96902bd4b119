"""Clusters for the tiers that need one; nothing is started for tests that do not ask."""

from __future__ import annotations

import signal

import hypothesis
import pytest

# On a busy machine an example may take any time; pytest's own limit is the one for what hangs.
hypothesis.settings.register_profile("llmtrain", deadline=None)
hypothesis.settings.load_profile("llmtrain")

pytest_plugins = ["devcluster.pytest_plugin", "tests.support.browser"]


def pytest_configure(config: pytest.Config) -> None:
    """A shell has what it runs in the background ignore Ctrl-C, also all that this begins; tests press it."""
    del config
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
