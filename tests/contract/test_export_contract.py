"""Every conf/export/*.yaml builds an exporter whose output reads back as the same updates."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import IncompatibleBlock
from pmemx.core.exporter import Exporter
from pmemx.core.peft_folder import read_peft_folder

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(params=sorted(path.stem for path in (CONF / "export").glob("*.yaml")))
def exporter(request: pytest.FixtureRequest) -> Exporter:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose(overrides=[f"+export={request.param}"]).export)


def block(name: str) -> CapabilityBlock:
    generator = torch.Generator().manual_seed(len(name))
    factors = {
        f"model.layers.{layer}.mlp.up_proj": LoraFactors(
            torch.randn(rank, 6, generator=generator), torch.randn(5, rank, generator=generator), 0.7
        )
        for layer, rank in ((0, 2), (1, 3))
    }
    return CapabilityBlock(BlockCard(name, "domain", "b" * 64), factors)


def test_every_block_gets_a_path_of_its_own_inside_the_folder(exporter: Exporter, tmp_path: Path) -> None:
    assert isinstance(exporter, Exporter)
    paths = exporter.export([block(name) for name in ("0", "../law", "LAW", "law", "☃")], tmp_path / "out")
    assert len(set(paths)) == 5
    assert all(path.parent == tmp_path / "out" and path.exists() for path in paths)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_reads_back_as_the_same_updates(exporter: Exporter, tmp_path: Path) -> None:
    (path,) = exporter.export([block("law")], tmp_path)
    got = read_peft_folder(path)
    assert (got.card.name, got.card.base) == ("law", "b" * 64)
    for site, factors in block("law").factors.items():
        torch.testing.assert_close(got.factors[site].delta(), factors.delta(), atol=1e-6, rtol=1e-6)


def test_the_same_blocks_give_the_same_bytes(exporter: Exporter, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        exporter.export([block("law"), block("finance")], tmp_path / folder)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) >= 2
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_two_blocks_of_one_name_are_refused(exporter: Exporter, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleBlock):
        exporter.export([block("law"), block("law")], tmp_path)
