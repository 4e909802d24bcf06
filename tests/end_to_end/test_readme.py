"""Every code block of the README runs as printed, in order, and prints what stands behind it."""

import json
import shutil
from pathlib import Path

import pytest

from pmemx.base_model.bundled import FOLDER
from pmemx.core.block import BlockCard, CapabilityBlock
from pmemx.data.procedural import ProceduralWorld
from pmemx.store.governed import GovernedStore
from tests.end_to_end.readme import Block, Reader, blocks, checkout
from tests.exchange import fake_hub

# Two of the quickstart's experts and their gate, made as the quickstart makes them.
SMALL = """
pmemx run experiments=quickstart 'data.domains=[law,finance]' 'plan=[distill,train_gate]' logger=csv \\
    stage.distill.workers=0 '~stage.distill.curricula.sequential'
"""


def bring(folder: Path) -> None:
    """What a reader has of their own: data, text, a model, a colleague with a bank."""
    world = ProceduralWorld(seed=7, domains=("botany", "engineering"), documents_per_domain=12).load()
    (folder / "my_folder").mkdir()
    for domain in world.domains:
        rows = [{"prompt": e.prompt, "response": e.response, "document": e.document} for e in domain.train]
        (folder / "my_folder" / f"my_{domain.name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [f"{row.prompt} {row.response}." for row in world.general.train]
    (folder / "my_text.txt").write_text("\n\n".join(" ".join(said[i : i + 8]) for i in range(0, 400, 8)))
    shutil.copytree(FOLDER, folder / "my_model")


def bring_colleague(folder: Path) -> None:
    """An expert of theirs for the same base. It knows no geology: what is shown is how it comes and goes."""
    law = GovernedStore(folder / "outputs" / "bank").get("law")
    card = BlockCard("geology", "geology", law.card.base, law.card.base_name)
    GovernedStore(folder.parent / "theirs").put(CapabilityBlock(card, law.factors))


def begin(reader: Reader, first: Block, scale: str) -> None:
    """Run the README's first block, or at the small scale what it makes for the blocks behind it."""
    assert first.code.split("#")[0].strip() == "make quickstart"
    bring(reader.folder)
    if scale == "full":
        reader.run(first)
    else:
        reader.shell(SMALL)
    bring_colleague(reader.folder)


@pytest.mark.parametrize("scale", ["small", pytest.param("full", marks=pytest.mark.slow)])
def test_every_block_of_the_readme_runs_as_printed_and_prints_what_it_says(tmp_path: Path, scale: str):
    first, *rest = blocks()
    with fake_hub.running() as hub:
        of_hub = {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_test",
            "HF_HOME": str(tmp_path / "home"),
        }
        reader = Reader(checkout(tmp_path / "checkout"), of_hub | {"HF_HUB_DISABLE_XET": "1"})
        try:
            begin(reader, first, scale)
            for block in rest:
                printed = reader.run(block)
                if block.output is not None:
                    assert printed == block.output, block.code
        finally:
            reader.close()
        assert list(hub.commits) == ["me/experts"]


def test_every_block_of_the_readme_is_one_that_a_reader_can_run():
    kinds = {(block.kind, bool(block.file)) for block in blocks()}
    assert kinds <= {("bash", False), ("python", False), ("python", True), ("yaml", True)}
