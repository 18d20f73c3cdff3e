"""The base class of all API objects, and the constrained types of their fields.

The patterns use no look-around and no Unicode classes, so that pydantic, Python and Go match the same texts.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

INT32_MAX = 2**31 - 1

Name = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"),
]
"""A Kubernetes object name (DNS subdomain)."""
Nodes = Annotated[int, Field(ge=1, le=5000)]
"""Nodes of a job. Kubernetes supports at most 5000 nodes in a cluster."""
Degree = Annotated[int, Field(ge=1, le=100_000)]
Seconds = Annotated[int, Field(ge=0, le=INT32_MAX)]
Number = Annotated[int, Field(ge=0, le=INT32_MAX)]
"""A count or a step in a status or a report."""


def _valid_time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Time = Annotated[
    str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"), AfterValidator(_valid_time)
]
"""RFC 3339 in UTC, whole seconds."""
UnixTime = Annotated[float, Field(ge=0, lt=253_402_300_800)]
"""Seconds since 1970, up to the year 9999."""


_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"


def _whole_number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18 else value


Quantity = Annotated[
    str,
    BeforeValidator(_whole_number_as_text),
    Field(min_length=1, max_length=32, pattern=_QUANTITY),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "maxLength": 32, "pattern": _QUANTITY}),
]
"""A Kubernetes quantity, for example `500m` or `16Gi`. In YAML, a whole number needs no quotes, as in a pod."""
Override = bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | float | Annotated[str, Field(max_length=4096)]
"""A value that overrides one in config.json. Lists and mappings are rejected: pretrained weights may not match them."""
ImageName = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[!-~]+$")]
"""A container image. The kubelet checks its format."""
EnvName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
AbsolutePath = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^/[^\x00-\x1f\x7f]*$")]
ShortText = Annotated[str, Field(min_length=1, max_length=255)]
LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
"""`name` or `example.com/name`: at most 253 characters, a slash, and 63 characters."""
LabelMap = Annotated[dict[LabelKey, Annotated[str, Field(max_length=1024)]], Field(max_length=64)]
HubId = Annotated[
    str, Field(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?$")
]
"""`name` or `owner/name` on the Hugging Face hub."""
HubRepo = Annotated[
    str, Field(min_length=3, max_length=96, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*$")
]
"""`owner/name` on the Hugging Face hub. The hub allows 96 characters."""
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
"""A relative path that stays inside its folder. No segment starts with a dot."""
VolumeName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]


class ApiModel(BaseModel):
    """Base of every API object: camelCase in JSON, immutable, unknown fields rejected."""

    # use_attribute_docstrings would parse the sources at every start (50 ms). crd.py parses them only when it runs.
    # JSON has no infinity and no NaN.
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, allow_inf_nan=False
    )

    def to_dict(self) -> dict[str, Any]:
        """Return the camelCase JSON form without unset (None) fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


DataKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
"""A key in the data of a Secret or ConfigMap."""


class SecretKey(ApiModel):
    """A key of a Secret in the job's namespace. The pod gets its value only as an environment variable."""

    name: Name
    """Name of the Secret."""
    key: DataKey = "token"
    """Key in the Secret."""


class ConfigMapKey(ApiModel):
    """A key of a ConfigMap in the job's namespace. The pod gets its value only as an environment variable."""

    name: Name
    """Name of the ConfigMap."""
    key: DataKey
    """Key in the ConfigMap."""
