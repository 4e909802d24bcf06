"""Training along a course: what a later phase takes over from the block it goes on from."""

from dataclasses import replace
from pathlib import Path

from pmemx.adapter.lora import Lora
from pmemx.base_model.bundled import BundledBaseModel
from pmemx.core.card import Sensitivity
from pmemx.core.domain import Domain, Example
from pmemx.core.stage import MetricsLog
from pmemx.distill.likelihood import Likelihood
from pmemx.lit.settings import TrainerSettings
from pmemx.stage.curriculum import Course
from pmemx.stage.training import Recipe, TrainingJob, train
from pmemx.store.governed import GovernedStore


def domain(name: str) -> Domain:
    examples = (Example(name, "what is the colour ?", "blue"),)
    return Domain(name, examples, (), examples)


def test_a_later_phase_is_as_sensitive_as_the_one_it_goes_on_from_and_under_its_licence(tmp_path: Path) -> None:
    store = GovernedStore(tmp_path / "bank")
    recipe = Recipe(
        base_model=BundledBaseModel(),
        adapter=Lora(rank=1),
        objective=Likelihood(),
        gold_objective=Likelihood(),
        locality=None,
        responses="gold",
        trainer=TrainerSettings(steps=1, batch_size=1),
        seed=0,
    )

    def trained(*domains: str) -> list[str]:
        course = Course("both", tuple((domain(name),) for name in domains))
        job = TrainingJob(
            course=course, recipe=recipe, general=domain("general"), store=store, folder=tmp_path / "checkpoints",
            metrics=MetricsLog(tmp_path), kind="sequential",
        )  # fmt: skip
        return [version.card.sensitivity + version.card.licence for version in train(job, lambda steps, text: None)]

    assert trained("law") == ["internal"]
    law = store.get("both")
    store.put(replace(law, card=replace(law.card, sensitivity=Sensitivity.SECRET.value, licence="mit")))
    assert trained("law", "art") == ["secretmit", "secretmit"]
