"""What workers would import, imported before there are any: in the zygote, from which they are forked."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from llmtrain_operator.contract import names

_LAZY: Final = (
    "deepspeed",
    "deepspeed.runtime.zero.muon.original_muon",
    "safetensors.torch",
    "tokenizers",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "xxhash",
)
"""What training imports only once it runs, by itself or in its libraries."""
_THREADED: Final = ("mlflow",)
"""What starts threads when it is imported, as DeepSpeed's autotuner does wherever it is there: nobody can be forked
from a process that has any."""
_OF_SCRIPTS: Final = frozenset({"datasets", "llmtrain_trainer", "numpy", "safetensors", "tokenizers", "torch"})
"""Packages that take long, and when imported look at nothing that a worker's environment has and the pod's has not."""


def trainer(module: str) -> None:
    """All that the workers of our own trainer need. Raises what importing raises."""
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is first imported
    with _absent(*_THREADED), _compiled_later():
        for name in (module, *_LAZY):
            importlib.import_module(name)
        with contextlib.suppress(Exception):  # whatever is wrong with the spec, the workers say it in their own words
            _model(os.environ[names.ENV_SPEC])


def script(path: Path) -> None:
    """What a script of the user's imports first of all, as far as that is the same for every process. What is wrong
    with it the workers say."""
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        for name in imported(path.read_text()):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def imported(source: str) -> tuple[str, ...]:
    """torch, and modules of `_OF_SCRIPTS` that the script imports at its top level; but nothing that it prepares the
    environment for, which libraries look at when they are imported. Pure. Raises `SyntaxError`, `ValueError`."""
    found: list[str] = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Import):
            found += [each.name for each in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            found.append(statement.module)
        elif _sets_environment(statement):
            break
    else:
        found.append("torch")
    return tuple(dict.fromkeys(name for name in found if name.partition(".")[0] in _OF_SCRIPTS))


def _sets_environment(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    for node in ast.walk(statement):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and _is_environ(node.value):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            method = node.func
            if method.attr == "putenv" or (_is_environ(method.value) and method.attr != "get"):
                return True
    return False


def _is_environ(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "environ"


@contextlib.contextmanager
def _absent(*modules: str) -> Iterator[None]:
    """Where these are not imported yet, importing them fails meanwhile, as if they were not installed."""
    barred = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(barred))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in barred:
            del sys.modules[name]


@contextlib.contextmanager
def _compiled_later() -> Iterator[None]:
    """Functions that a module hands to `torch.compile` when it is imported are compiled when they are first called.
    DeepSpeed does that with those of an optimizer that few jobs have, and a fifth of all imports is for it alone."""
    import torch

    real: Any = torch.compile

    def later(function: Any = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(later, **options)
        if not isinstance(function, types.FunctionType):
            return real(function, **options)
        compiled = functools.cache(lambda: real(function, **options))
        return functools.wraps(function)(lambda *given, **named: compiled()(*given, **named))

    torch.compile = later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = real


def _model(spec: str) -> None:
    """The code of the job's architecture, which transformers imports when the first one of its kind is made."""
    import torch

    from llmtrain_trainer import config, models

    class Unknown:
        vocab_size, eos = 8, 0

    parsed = config.parse(spec)
    if not parsed.model.pretrained:
        with torch.device("meta"):
            models.instantiate(models.model_config(parsed, Unknown()))
