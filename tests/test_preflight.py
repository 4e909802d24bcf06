"""Every misfit between a config and the code is named where it was written, before any work."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from pmemx.choices import axes, settings
from pmemx.cli_bank.opening import DEFAULT
from pmemx.core.access import Role
from pmemx.core.atomic import check_writable
from pmemx.core.errors import AccessDenied, ConfigError, StorageError
from pmemx.preflight import check, fits
from pmemx.stage.build import build, locate
from pmemx.store.bank import Bank
from pmemx.store.members import Members

ROOT = Path(__file__).parents[1]


@cache
def composed() -> dict[str, Any]:
    """conf/run.yaml with a plan of two stages that share the store."""
    os.environ["PMEMX_ROOT"] = str(ROOT)
    overrides = ["gate=linear", "logger=csv", "plan=[distill,train_gate]", "run_folder=x", "experiment=x"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose("run", overrides), resolve=False)  # type: ignore[return-value]


def config(**changes: Any):
    """A sound config with some changes: gate__granularity="token" changes gate.granularity."""
    made = OmegaConf.create(composed())
    for key, value in changes.items():
        OmegaConf.update(made, key.replace("__", "."), value, force_add=True, merge=False)
    return made


def misfits(**changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(config(**changes))
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_a_sound_config_passes():
    assert check(config()) is None


def test_an_unknown_argument_is_named_where_it_was_written_with_the_nearest_one():
    assert misfits(gate__granularty="token") == [
        "gate.granularty: LinearGate takes no 'granularty'; did you mean 'granularity'?"
    ]


def test_every_misfit_is_reported_at_once():
    found = misfits(trainer__stepz=1, trainer__schedule="linaer", store__path=3, plan=["distill", "train_gaet"])
    assert sorted(line.split(":")[0] for line in found) == ["plan", "store.path", "trainer.schedule", "trainer.stepz"]


def test_a_misfit_that_two_stages_share_is_reported_once():
    assert len(misfits(store__pth="bank")) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [("many", "'many' (str)"), (True, "True (bool)"), (1.5, "1.5 (float)"), (None, "null")],
)
def test_a_value_of_another_type_is_shown_beside_the_type_that_is_taken(value: object, words: str):
    assert misfits(trainer__steps=value) == [f"trainer.steps: TrainerSettings takes an int, not {words}"]


def test_a_wrong_literal_lists_the_right_ones():
    assert misfits(trainer__schedule="cosin") == [
        "trainer.schedule: TrainerSettings takes one of constant, linear, cosine, not 'cosin' (str); did you mean 'cosine'?"
    ]


def test_a_missing_argument_is_named_with_what_to_set():
    broken = config()
    del broken.store["path"]
    with pytest.raises(ConfigError, match=r"store\.path: GovernedStore needs it; set \+store\.path="):
        check(broken)


def test_a_required_setting_without_a_value_is_named():
    assert misfits(store__path="???") == ["store.path: a value is required; set store.path=..."]


def test_an_object_of_another_kind_is_refused():
    assert misfits(store={"_target_": "pmemx.select.softmax.Softmax"}) == [
        "store: DistillStage takes a Store, and Softmax is none",
        "store: TrainGateStage takes a Store, and Softmax is none",
    ]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "pmemx.core.bank.torch.load",
        "pmemx.core.canonical.json.loads",
        "pmemx.core.bank.nn.Linear",
    ],
)
def test_nothing_outside_pmemx_can_be_called(target: str):
    with pytest.raises(ConfigError):
        locate(target)


def test_a_target_that_is_not_there_brings_the_nearest():
    assert misfits(gate={"_target_": "pmemx.gate.linaer.LinearGate"})[0] == (
        "gate._target_: there is no module pmemx.gate.linaer; did you mean 'linear'?"
    )
    assert misfits(gate={"_target_": "pmemx.gate.linear.LinaerGate"})[0] == (
        "gate._target_: pmemx.gate.linear holds no 'LinaerGate'; did you mean 'LinearGate'?"
    )


def test_an_empty_plan_is_refused():
    (line,) = misfits(plan=[])
    assert re.fullmatch(r"plan: it is empty; there is .*distill.*; set it, for example plan=\[\w+\]", line)


KNOWN = ("plan", "stage", "gate", "experiments", "mixing")


@pytest.mark.parametrize(("key", "nearest"), [("experimnts", "experiments"), ("gat", "gate")])
def test_a_setting_at_the_root_that_nothing_reads_is_refused_with_the_nearest(key: str, nearest: str):
    made = config(**{key: "quickstart"})
    with pytest.raises(ConfigError, match=f"\n  {key}: nothing reads it; did you mean '{nearest}'\\?"):
        check(made, {*composed(), *KNOWN})
    assert check(made) is None


def test_a_setting_at_the_root_that_another_refers_to_is_read():
    made = config(size=5, trainer__steps="${size}")
    assert check(made, {*composed(), *KNOWN}) is None


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("x", "seed: a run takes an int, not 'x' (str)"),
        (None, "seed: a run takes an int, not null"),
        (-1, "seed: it is -1, and a seed is 0 or more and below 4294967296"),
        (2**32, "seed: it is 4294967296, and a seed is 0 or more and below 4294967296"),
    ],
)
def test_a_seed_is_a_number_that_every_generator_takes(value: object, line: str):
    assert line in misfits(seed=value)


def test_a_run_folder_that_cannot_be_made_is_noticed_before_any_work(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/run cannot be a folder, since .*/file is none"):
        check(config(run_folder=str(tmp_path / "file" / "run")))


def test_a_store_that_cannot_be_made_is_noticed_before_any_work(tmp_path: Path):
    (tmp_path / "bank").touch()
    stored = {"_target_": "pmemx.store.governed.GovernedStore", "path": str(tmp_path / "bank")}
    with pytest.raises(StorageError, match=r"cannot be a folder, since .*/bank is none"):
        check(config(store=stored))
    # Only a plan that puts blocks asks.
    assert check(config(store=stored, plan=["train_gate"])) is None


def test_a_folder_that_its_mount_forbids_to_write_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # As a read-only mount answers, whoever asks.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(StorageError, match=f"{tmp_path} may not be written by this user"):
        check_writable(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_a_bank_that_the_principal_may_only_read_is_noticed_before_any_work(tmp_path: Path):
    owned = Bank(tmp_path / "bank", principal="ada")
    Members(owned).enrol("ada", role=Role.OWNER)
    Members(owned).enrol("eve", role=Role.READER)

    def checked(principal: str, **plan: object) -> None:
        store = {"_target_": "pmemx.store.governed.GovernedStore", "path": str(owned.path), "principal": principal}
        check(config(store=store, **plan))

    assert checked("ada") is None
    with pytest.raises(AccessDenied, match="'eve' may not write shared: no role of theirs gives it"):
        checked("eve")
    with pytest.raises(AccessDenied, match="'mallory' may not read the bank: the bank does not know this principal"):
        checked("mallory")
    assert checked("eve", plan=["train_gate"]) is None
    # A role on one block may be all that a run needs.
    Members(owned).grant("eve", Role.EDITOR, "shared/law")
    assert checked("eve") is None


def test_what_the_plan_does_not_reach_is_not_checked():
    assert check(config(export={"_target_": "pmemx.nowhere.Nothing"}, stage__other={"_target_": "x"})) is None


def test_a_logger_may_take_further_arguments_where_its_signature_says_so():
    logger = {"wandb": {"_target_": "lightning.pytorch.loggers.WandbLogger", "mode": "offline", "project": "p"}}
    assert check(config(logger=logger)) is None


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, float, True),
        (True, float, False),
        (1, bool, False),
        ("a", Path, True),
        ([1, 2], tuple[int, ...], True),
        ("ab", tuple[str, ...], False),
        ({"a": 1}, dict[str, int], True),
        (None, int | None, True),
        (None, int, False),
        ("b", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (object(), Any, True),
    ],
)
def test_yaml_values_fit_annotations_as_python_would_have_it(value: object, annotation: Any, expected: bool):
    assert fits(value, annotation) is expected


def test_build_makes_objects_from_the_inside_out_and_lists_tuples():
    node = {"a": [{"_target_": "pmemx.select.top_k.TopK", "k": 2}], "b": 1}
    made = build(node)
    assert made["a"][0].k == 2
    assert isinstance(made["a"], tuple)
    assert build({"_target_": "pmemx.select.top_k.TopK", "_partial_": True})(k=3).k == 3


@pytest.mark.parametrize(
    "experiment",
    sorted(
        path.relative_to(ROOT / "experiments").with_suffix("").as_posix() for path in ROOT.glob("experiments/**/*.yaml")
    ),
)
@pytest.mark.parametrize("scale", ["full", "smoke"])
def test_every_experiment_fits_the_code(experiment: str, scale: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PMEMX_ROOT", str(ROOT))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        made = compose(
            "run", [f"experiments={experiment}", f"scale={scale}", "run_folder=x", "experiment=x", "logger=csv"]
        )
    for name in OmegaConf.missing_keys(made):  # what only the user knows is no misfit of the experiment
        OmegaConf.update(made, name, "given")
    assert check(made, settings(ROOT)) is None


def test_what_a_user_chooses_wins_over_a_scale(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PMEMX_ROOT", str(ROOT))
    said = [
        "logger=tensorboard",
        "trainer=resumable",
        "rows.train=5",
        "bank_folder=mine",
        "run_folder=x",
        "experiment=x",
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        made, plain = (compose("run", ["scale=smoke", *words]) for words in (said, said[-2:]))
    assert list(made.logger) == ["tensorboard"] and list(plain.logger) == []
    assert (made.trainer.checkpoint_every, made.rows.train, made.store.path) == (50, 5, "mine")
    assert (made.trainer.steps, made.rows.test) == (plain.trainer.steps, plain.rows.test) == (3, 8)


def test_a_scale_says_sizes_and_a_place_and_leaves_every_choice_to_its_axis():
    for scale in (ROOT / "conf" / "scale").glob("*.yaml"):
        said = OmegaConf.load(scale)
        chosen = {key for key in said if key in axes(ROOT) and not isinstance(said[key], DictConfig)}
        assert chosen == set()
        assert "_target_" not in OmegaConf.to_yaml(said)


@pytest.mark.parametrize(
    ("scale", "seed", "folder"),
    [
        ("full", 0, "outputs/bank"),
        ("full", 1, "outputs/bank_seed1"),
        ("smoke", 0, "outputs/smoke/bank_seed0"),
        ("smoke", 1, "outputs/smoke/bank_seed1"),
    ],
)
def test_a_run_of_another_seed_or_scale_has_a_bank_of_its_own(
    scale: str, seed: int, folder: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PMEMX_ROOT", str(ROOT))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        made = compose("run", ["experiments=quickstart", f"scale={scale}", f"seed={seed}"])
    assert made.store.path == made.stage.distill.store.path == folder
    assert (folder == DEFAULT) == ((scale, seed) == ("full", 0))
