"""The scalar types of the spec: numbers with bounds, places in storage, durations."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from llmtrain_operator.contract.uris import HUB_ID

CLAIM: Final = r"pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?"
_PLACE: Final = rf"^(/.*|file:///.*|{CLAIM})$"
_MODEL: Final = rf"^(/.*|file:///.*|{CLAIM}|{HUB_ID})$"
_STORAGE: Final = rf"^(s3://[a-z0-9][-a-z0-9.]*(/.*)?|file:///.*|{CLAIM})$"

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrZero = Annotated[int, Field(ge=0, le=2**31 - 1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Place = Annotated[str, Field(pattern=_PLACE, max_length=1024)]
ModelPlace = Annotated[str, Field(pattern=_MODEL, max_length=1024)]
Storage = Annotated[str, Field(pattern=_STORAGE, max_length=1024)]
Duration = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$", max_length=32)]
DurationOrAuto = Annotated[str, Field(pattern=r"^(auto|([0-9]+(\.[0-9]+)?(ms|s|m|h))+)$", max_length=32)]
FreeForm = Annotated[
    dict[str, Any], Field(json_schema_extra={"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]
