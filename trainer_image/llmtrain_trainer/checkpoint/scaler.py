"""The loss scale of fp16, wherever DeepSpeed keeps it, and the counters that decide when it changes next."""

from __future__ import annotations

from typing import Any, Final

_COUNTERS: Final = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def describe(engine: Any) -> dict[str, Any]:
    """As JSON; empty where no loss scale is sought for."""
    grad_scaler = _grad_scaler(engine)
    if grad_scaler is not None:
        return {"gradScaler": grad_scaler.state_dict()}
    scaler = _scaler(engine)
    return {name: getattr(scaler, name) for name in _COUNTERS if hasattr(scaler, name)}


def load(engine: Any, stored: dict[str, Any]) -> None:
    """Go on with a described scale; one that the engine does not seek is dropped (another precision)."""
    grad_scaler = _grad_scaler(engine)
    if grad_scaler is not None and "gradScaler" in stored:
        grad_scaler.load_state_dict(stored["gradScaler"])
    scaler = _scaler(engine)
    for name in _COUNTERS:
        if name in stored and hasattr(scaler, name):
            setattr(scaler, name, stored[name])


def _grad_scaler(engine: Any) -> Any:
    """torch's own, with the config's torch_autocast."""
    at_stage_0 = getattr(engine, "torch_autocast_z0_gradscaler", None)
    return at_stage_0 or getattr(engine.optimizer, "torch_autocast_gradscaler", None)


def _scaler(engine: Any) -> Any:
    """DeepSpeed's, if its scale is dynamic: of the ZeRO stages, or of the wrapper at stage 0."""
    optimizer = engine.optimizer
    scaler = getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)
    dynamic = getattr(scaler, "dynamic", False) or getattr(scaler, "dynamic_loss_scale", False)
    return scaler if dynamic else None
