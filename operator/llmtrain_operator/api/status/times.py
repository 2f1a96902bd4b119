"""Times of the status."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""As RFC 3339 has it."""
