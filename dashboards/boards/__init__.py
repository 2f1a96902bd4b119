"""The boards: fleet, job, recovery, checkpoint. Each is a table of panels."""

from typing import Final

from dashboards.boards import checkpoint, fleet, job, recovery
from dashboards.panel import Board

BOARDS: Final[tuple[Board, ...]] = (fleet.BOARD, job.BOARD, recovery.BOARD, checkpoint.BOARD)
