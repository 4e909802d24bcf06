"""The section of the report on the library: three heatmaps with their numbers, and nothing where there is nothing."""

from pathlib import Path

from pmemx.core.metric import Figure
from pmemx.core.record import BlockEntry, RunRecord
from pmemx.report import write_report
from pmemx.report.library import library
from pmemx.report.run import Run
from pmemx.report.sections import sections

NAMES = ("law", "tax", "team/art")


def run(num_experts: int = 3) -> Run:
    names = (*NAMES, *(f"e{number}" for number in range(num_experts - 3)))
    figures = {}
    for measure, floor in (("similarity", None), ("overlap/input", 0.125), ("overlap/output", 0.25)):
        for i, one in enumerate(names):
            for j, other in enumerate(names[i + 1 :], i + 1):
                figures[f"{measure}/{one}/{other}"] = Figure(0.5 / (i + j) - 0.2 * (floor is None), floor=floor)
        figures[f"{measure}/mean"] = Figure(0.25, floor=floor)
    blocks = tuple(BlockEntry(name, 1, "d" * 64, name) for name in names)
    return Run(RunRecord("test", blocks=blocks, figures=figures), None, (), "")


def test_three_heatmaps_show_every_pair_both_ways_with_the_numbers_beside_them():
    (section,) = library(run())
    assert [picture.name for picture in section.pictures] == [
        "library_similarity",
        "library_overlap_input",
        "library_overlap_output",
    ]
    cosine = section.pictures[0]
    assert [cosine.svg.count(f">{word}<") for word in ("0.30", "0.05", "-0.03")] == [2, 2, 2]
    assert "The highest is 0.300, of law and tax; the lowest −0.033, of tax and team/art." in cosine.alt
    assert [row[:3] for row in section.pictures[1].table.rows] == [
        ("law", "tax", "0.500"),
        ("law", "team/art", "0.250"),
        ("tax", "team/art", "0.167"),
    ]
    assert section.pictures[1].table.rows[0][5] == "0.125"
    assert [row[:2] for row in section.tables[0][1].rows][0] == ("Cosine similarity of updates", "0.250")


def test_a_run_that_did_not_look_at_its_library_has_no_such_section():
    bare = Run(RunRecord("bare", figures={"exact_match/gate/law/test": Figure(0.5)}), None, (), "")
    assert library(bare) == () and "library" not in {section.key for section in sections(bare)}


def test_a_library_too_large_to_read_keeps_its_means():
    (section,) = library(run(41))
    assert section.pictures == () and len(section.tables[0][1].rows) == 3


def test_the_page_holds_it(tmp_path: Path):
    run().record.write(tmp_path)
    assert 'id="library"' in write_report(tmp_path).read_text()
    assert (tmp_path / "figures" / "library_similarity.svg").exists()
