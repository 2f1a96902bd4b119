"""The random generators of one worker's process, as JSON.

A generator is one rank's: the draws of a run go on bit for bit only at the same world size on the same kind of device.
"""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch


def describe() -> dict[str, Any]:
    """The state of Python's, numpy's, and torch's generators, the current accelerator's too."""
    version, words, gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    described = {
        "python": [version, list(words), gauss],
        "numpy": [algorithm, _text(np.asarray(keys).tobytes()), int(position), int(has_gauss), float(cached)],
        "torch": _text(torch.get_rng_state().numpy().tobytes()),
    }
    accelerator = _accelerator()
    if accelerator is not None:
        described[accelerator.type] = _text(
            torch.get_device_module(accelerator).get_rng_state().cpu().numpy().tobytes()
        )
    return described


def load(stored: dict[str, Any]) -> None:
    """Go on from a described state. An accelerator's is left out on another kind of device."""
    version, words, gauss = stored["python"]
    random.setstate((version, tuple(words), gauss))
    algorithm, keys, position, has_gauss, cached = stored["numpy"]
    np.random.set_state((algorithm, np.frombuffer(_bytes(keys), dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_tensor(stored["torch"]))
    accelerator = _accelerator()
    if accelerator is not None and accelerator.type in stored:
        torch.get_device_module(accelerator).set_rng_state(_tensor(stored[accelerator.type]))


def _accelerator() -> torch.device | None:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def _text(state: bytes) -> str:
    return base64.b64encode(state).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(_bytes(text)), dtype=torch.uint8)
