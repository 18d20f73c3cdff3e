"""What every API object is made of: its base class and the constrained types of its fields.

The patterns mean the same to pydantic's, Python's and Go's engines: no look-around, no Unicode classes.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

INT32_MAX = 2**31 - 1

Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""A Kubernetes object name (DNS subdomain)."""
Count = Annotated[int, Field(ge=1, le=100_000)]
Degree = Annotated[int, Field(ge=1, le=100_000)]
Seconds = Annotated[int, Field(ge=0, le=INT32_MAX)]


_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"


def _whole_number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18 else value


Quantity = Annotated[
    str,
    BeforeValidator(_whole_number_as_text),
    Field(min_length=1, max_length=32, pattern=_QUANTITY),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "maxLength": 32, "pattern": _QUANTITY}),
]
"""A Kubernetes quantity, for example `500m`, `16Gi`; in YAML a whole number may stand without quotes, as in a pod."""
EnvName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
AbsolutePath = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^/[^\x00-\x1f\x7f]*$")]
LabelMap = Annotated[dict[str, Annotated[str, Field(max_length=1024)]], Field(max_length=64)]
HubId = Annotated[
    str, Field(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?$")
]
"""`name` or `owner/name` on the Hugging Face hub."""
ModelName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=512,
        pattern=r"^(/[^\x00-\x1f\x7f]+|[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?)$",
    ),
]
"""A HubId or an absolute path."""
Subpath = Annotated[
    str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$")
]
"""A relative path that stays inside its folder: no segment starts with a dot."""
VolumeName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]


class ApiModel(BaseModel):
    """Base of every API object: camelCase outside, immutable, unknown fields refused."""

    # Not use_attribute_docstrings: it parses this room's sources at every start (50 ms); crd.py does so when asked.
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """The camelCase JSON form, without unset (None) fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class SecretKey(ApiModel):
    """A key of a Secret in the job's namespace. Its value reaches the pod as an environment variable only."""

    name: Name
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = "token"
    """Key inside the Secret."""
