"""The base of all request models: a wrong type or an unknown field is an error, never a guess."""

from pydantic import BaseModel, ConfigDict, Tag

# Names of union members in pydantic's error locations; `parse.path` leaves them out.
STRING, ARRAY, OBJECT = Tag("<string>"), Tag("<array>"), Tag("<object>")


class Strict(BaseModel):
    """See the module."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )
