"""How fit an expert is when it is always on: what it gains on its own domain, and what it costs elsewhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from pmemx.core.bank import ExpertBank
from pmemx.core.base_model import LoadedBase
from pmemx.core.block import CapabilityBlock
from pmemx.core.domain import Corpus, Domain
from pmemx.core.encoding import encode
from pmemx.core.metric import Figure
from pmemx.core.statistics import Interval, Stratum, cluster_sums, count_clusters, estimate, interval
from pmemx.runtime.attach import Routed, attached
from pmemx.runtime.score import Scored, score

FORGETTING, DIVERGENCE, GAIN, EXACT = "forgetting_general", "kl_off_domain", "own_domain", "own_domain_exact"


@dataclass(frozen=True, eq=False)
class Fitness:
    """The questions of a corpus, put to the base once and to every expert; on test rows alone."""

    base: LoadedBase
    corpus: Corpus
    _alone: dict[str, list[Scored]] = field(default_factory=dict)

    def of(self, block: CapabilityBlock, own: str) -> dict[str, Figure]:
        """Figures of one expert, paired by question with the base; intervals are clustered by group.

        forgetting_general: nats per token lost on general text. kl_off_domain: KL(base || expert) in nats per token on
        the domains other than `own`, each counting once; absent where there are none. own_domain: nats per token gained
        on `own`. own_domain_exact: share of its questions that are answered exactly, with chance as floor.
        """
        general, mine = self.corpus.general, self.corpus.domain(own)
        others = [domain for domain in self.corpus.domains if domain.name != own]
        bank = ExpertBank([block])
        with attached(self.base.model, bank, weights=[1.0], base=self.base.fingerprint) as routed:
            lost = _change(general, self._alone_on(general, routed), self._score(general, routed))
            answers = self._score(mine, routed)
            gained = _change(mine, answers, self._alone_on(mine, routed))
            divergences = [self._divergence(domain, routed) for domain in others]
        exact = cluster_sums(_groups(mine), [float(row.exact) for row in answers], [1.0] * len(answers))
        figures = {
            FORGETTING: _figure([lost], len(general.test)),
            GAIN: _figure([gained], len(mine.test)),
            EXACT: _figure([exact], len(mine.test), bounds=(0.0, 1.0), floor=mine.chance),
        }
        if divergences:
            asked = sum(len(domain.test) for domain in others)
            figures[DIVERGENCE] = _figure(divergences, asked, bounds=(0.0, math.inf))
        return figures

    def _alone_on(self, domain: Domain, routed: Routed) -> list[Scored]:
        if domain.name not in self._alone:
            with routed.disabled():
                self._alone[domain.name] = self._score(domain)
        return self._alone[domain.name]

    def _divergence(self, domain: Domain, routed: Routed) -> Stratum:
        # What the base predicts is computed again for every expert: kept for all domains, it would take a number for
        # every answer token and word of the vocabulary.
        with routed.disabled():
            reference = [row.log_probs for row in self._score(domain, keep=True) if row.log_probs is not None]
        rows = self._score(domain, routed, reference=reference)
        kl = [row.kl for row in rows if row.kl is not None]
        return cluster_sums(_groups(domain), kl, [float(row.tokens) for row in rows])

    def _score(
        self,
        domain: Domain,
        routed: Routed | None = None,
        *,
        keep: bool = False,
        reference: Sequence[torch.Tensor] | None = None,
    ) -> list[Scored]:
        rows = [encode(self.base.tokenizer, example, with_document=False) for example in domain.test]
        pad = self.base.tokenizer.pad_token_id
        return score(self.base.model, rows, pad=pad, routed=routed, keep=keep, reference=reference)


def _groups(domain: Domain) -> list[str]:
    return [f"{domain.name}/{example.group or example.id}" for example in domain.test]


def _change(domain: Domain, before: Sequence[Scored], after: Sequence[Scored]) -> Stratum:
    """Nats that come on top, and tokens, by group."""
    nats = [new.nats - old.nats for old, new in zip(before, after, strict=True)]
    return cluster_sums(_groups(domain), nats, [float(row.tokens) for row in after])


def _figure(
    strata: Sequence[Stratum],
    n: int,
    *,
    bounds: Interval = (-math.inf, math.inf),
    floor: float | None = None,
) -> Figure:
    low, high = interval(strata, bounds=bounds) or (None, None)
    return Figure(estimate(strata), low, high, n, count_clusters(strata), floor)
