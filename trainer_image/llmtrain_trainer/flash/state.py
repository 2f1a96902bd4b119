"""What snapshots are taken of: DeepSpeed's engine (`checkpoint.state.EngineState`) or plain torch."""

from __future__ import annotations

from typing import Any, Protocol

from llmtrain_trainer.checkpoint.pieces import Fill, Piece


class State(Protocol):
    """One rank's part of a training state. Every method is for step boundaries."""

    def pieces(self) -> list[Piece]:
        """What this rank owns: over all ranks each element exactly once. Views of live state."""

    def expected(self) -> list[Piece]:
        """Pieces as many and as large as `pieces` will be once the optimizer has made its state."""

    def identity(self) -> tuple[int, ...]:
        """Where the state lies in memory: `pieces` are the same views as long as this is the same."""

    def shapes(self) -> dict[str, Any]:
        """The part of the state that is no tensor and never changes, as JSON; the same on every rank."""

    def numbers(self) -> dict[str, Any]:
        """The part that is no tensor and changes with each step, as JSON; the same on every rank."""

    def rng(self) -> dict[str, Any]:
        """This rank's random generators, as JSON."""

    def load(self, scalars: dict[str, Any], fill: Fill) -> None:
        """Make the state what `shapes() | numbers()` and the stored pieces say. Collective; see `EngineState.load`."""

    def load_rng(self, stored: dict[str, Any]) -> None:
        """Go on with the generators of `rng()`."""

    def reseed(self, step: int) -> None:
        """Other numbers than those already drawn, where another world size has other ranks."""
