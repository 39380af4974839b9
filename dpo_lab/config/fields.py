"""What values of the configuration may be, and what all of its nodes have in common."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat

Count = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[int, Field(gt=0, strict=True)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveReal = Annotated[PositiveFloat, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[
    str, BeforeValidator(lambda v: str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v)
]
Precision = Annotated[
    Literal["auto", "32", "bf16", "fp16", "fp16_on_gpu", "64"],
    BeforeValidator(lambda v: str(v) if isinstance(v, int) else v),
]
Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]


class Group(BaseModel):
    """Unknown keys are errors and nothing changes after composition."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
