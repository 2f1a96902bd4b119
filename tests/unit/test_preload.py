"""What of a user's script is imported before its workers are there."""

from __future__ import annotations

import pytest
import torch

from llmtrain_trainer.preload import _compiled_later, imported


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch, os\nimport numpy as np", ("torch", "numpy")),
        ("from torch.nn.parallel import DistributedDataParallel\nimport torch", ("torch.nn.parallel", "torch")),
        ("def f():\n    import numpy\nif f():\n    import numpy", ("torch",)),
        ("from . import numpy\nfrom .numpy import x\nimport helper, lightning", ("torch",)),
        ("import torchvision", ("torch",)),
        ("import os\nos.environ['OMP_NUM_THREADS'] = '4'\nimport torch", ()),
        ("import os, numpy\nif x:\n    os.environ.setdefault('A', 'b')\nimport torch", ("numpy",)),
        ("import os\nrank = int(os.environ['RANK'])\nname = os.environ.get('A')\nimport torch", ("torch",)),
    ],
    ids=[
        "several",
        "parts",
        "only at the top",
        "not its own nor what looks at ranks",
        "no prefix",
        "environment first",
        "environment in between",
        "environment only read",
    ],
)
def test_what_is_the_same_for_every_process_is_imported(source: str, found: tuple[str, ...]) -> None:
    """Unless the script prepares the environment for it."""
    assert imported(source) == found


def test_what_is_compiled_on_import_is_compiled_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, however often that is; and afterwards `torch.compile` is what it was."""
    compiled = []

    def compile_it(function, **options):
        compiled.append((function.__name__, options))
        return function

    monkeypatch.setattr(torch, "compile", compile_it)
    with _compiled_later():

        @torch.compile(dynamic=True)
        def double(x: int) -> int:
            return 2 * x

    assert torch.compile is compile_it
    assert not compiled
    assert [double(1), double(2)] == [2, 4]
    assert (compiled, double.__name__) == ([("double", {"dynamic": True})], "double")
