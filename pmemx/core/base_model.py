"""The interface of base models: a frozen causal language model with its tokenizer and its identity."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class LoadedBase:
    """A base model ready to be read: in eval mode, without gradients.

    model: a transformers PreTrainedModel. tokenizer: a transformers tokenizer with a pad token. fingerprint: identity
    of the weights, see core.digest.fingerprint. context: the most positions the model was made for. revision: the branch,
    tag or commit it was asked for by, empty where nobody asked.
    """

    model: Any
    tokenizer: Any
    name: str
    fingerprint: str
    context: int
    revision: str = ""


class BaseModel(ABC):
    """Where a base model comes from. A frozen dataclass of settings."""

    @abstractmethod
    def load(self) -> LoadedBase:
        """Read the weights; the same settings give the same fingerprint."""
