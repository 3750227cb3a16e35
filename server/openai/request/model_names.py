"""The names of the one model: its own, alone or with a cache policy, and the operator's aliases.

An alias stands for such a name: with `--model-alias gpt-4o=llava-demo:look-m-plus@0.2` a client
that can say nothing but `gpt-4o` gets that policy. Knows names; `policies` knows how policies are
written.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from lookm import policy
from lookm.errors import PolicyError
from lookm.types import CachePolicy
from server.api_errors import ApiError
from server.openai.request.policies import VARIANT_KEEP, preset, read


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The model that is `served`, and what each alias stands for."""

    served: str
    aliases: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, served: str, given: Sequence[str]) -> Self:
        """With aliases as they are set, `name=model`. Raises `ValueError`, in one line."""
        aliases: dict[str, str] = {}
        plain = cls(served)
        for each in given:
            name, _, target = (part.strip() for part in each.partition("="))
            if not name or not target:
                raise ValueError(f"--model-alias {each!r}: give NAME={served}:POLICY")
            if name in aliases:
                raise ValueError(f"--model-alias {each!r}: {name!r} is an alias already")
            if name == served or name.startswith(f"{served}:"):
                raise ValueError(f"--model-alias {each!r}: {name!r} is a name of the model itself")
            try:
                plain.policy(target)
            except ApiError as error:
                raise ValueError(f"--model-alias {each!r}: {error.message}") from None
            aliases[name] = target
        return cls(served, aliases)

    def full(self, model: str) -> str:
        """What a name stands for; itself, if it is no alias."""
        return self.aliases.get(model, model)

    def policy(self, model: str) -> CachePolicy | None:
        """The policy in a name, None where there is none. Raises `ApiError` for another model."""
        served, full = self.served, self.full(model)
        if full == served:
            return None
        if not full.startswith(f"{served}:"):
            also = "".join(f", or {alias!r}" for alias in self.aliases)
            message = (
                f"This server has one model: {served!r}, alone or with a cache policy, as in "
                f"'{served}:look-m@{VARIANT_KEEP}'{also}."
            )
            raise ApiError("model_not_found", message, param="model")
        try:
            return read(full[len(served) + 1 :])
        except PolicyError as error:
            raise ApiError("invalid_kv_cache", str(error), param="model") from None

    def listed(self) -> Iterator[str]:
        """The names that `/v1/models` lists."""
        yield self.served
        yield from self.aliases
        for method in policy.PRESETS:
            yield f"{self.served}:{policy.to_string(preset(method))}"
