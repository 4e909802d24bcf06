"""Maximum likelihood: of whole documents (lm) or of the answers alone (sft)."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.distill import Distill, Predictions, Rows


@dataclass(frozen=True, kw_only=True)
class Likelihood(Distill):
    """Cross-entropy of the labels.

    rows "documents" is continued pre-training on the text, the weakest way to store knowledge unless the text is
    paraphrased (arXiv:2309.14316); "answers" is supervised fine-tuning on gold responses.
    """

    rows: Rows = "answers"

    def __call__(
        self, student: Predictions, teacher: Predictions | None, labels: Int[Tensor, " position"]
    ) -> Float[Tensor, ""]:
        """-log p(label), mean over positions."""
        return F.cross_entropy(student.logits.float(), labels)
