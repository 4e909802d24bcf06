"""A profile: experts, versions and weights under a name, such as "legal", so that a request can ask for them in one word."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pmemx.core.errors import ConfigError, CorruptBlock


@dataclass(frozen=True)
class Profile:
    """weights: by expert, without a limit on their sum. versions: which version of an expert it must be, where it matters."""

    name: str
    weights: Mapping[str, float]
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for expert, weight in self.weights.items():
            if not math.isfinite(weight):
                raise ConfigError(f"profile {self.name!r} gives {expert!r} the weight {weight}; it must be finite")
        if strangers := self.versions.keys() - self.weights.keys():
            raise ConfigError(
                f"profile {self.name!r} names a version of {min(strangers)!r}, but no weight; give it one"
            )
        object.__setattr__(self, "weights", dict(self.weights))
        object.__setattr__(self, "versions", dict(self.versions))

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({"name": self.name, "weights": dict(self.weights), "versions": dict(self.versions)})

    @staticmethod
    def from_json(text: str) -> "Profile":
        """The profile that `to_json` wrote. Raises CorruptBlock when it is none."""
        try:
            found = json.loads(text)
            name, weights, versions = found["name"], found["weights"], found["versions"]
            if not (isinstance(name, str) and isinstance(weights, dict) and isinstance(versions, dict)):
                raise TypeError("a name is text, weights and versions are objects")
            if not all(isinstance(version, str) for version in versions.values()):
                raise TypeError("a version is text")
            return Profile(name, {expert: float(weight) for expert, weight in weights.items()}, versions)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CorruptBlock(
                f"{text[:60]!r} is no profile ({error!r}); it holds name, weights and versions"
            ) from error
