"""A synthetic run rendered: self-contained, escaped, the same twice, and honest about what is missing."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pmemx.core.errors import DataError
from pmemx.core.evidence import Answer, Decision, DomainFacts, Evidence, SiteLoad, UncoveredPrompt
from pmemx.core.metric import Figure
from pmemx.core.record import BaseEntry, BlockEntry, CurvePoint, RunRecord, append_curve
from pmemx.report import write_report
from pmemx.report.heatmaps import folded, share
from pmemx.report.tables import number, percent, with_interval

NASTY = "<script>alert(1)</script> & $x_1$ |"
DOMAINS = ("law", NASTY)
SYSTEMS = ("base", "teacher", "oracle", "gate", "average")
SECTIONS = ("experts", "recovery", "phrasings", "routing", "uncovered", "general", "growth", "training")
DRAWN = {"confusion_gate", "experts_exact", "experts_loss", "general", "growth", "growth_matrix", "phrasings", "recovery_exact", "sites_gate", "training"}  # fmt: skip


def figures() -> dict[str, Figure]:
    """Every figure that a section looks for, at values that can be told apart."""
    shape = {"n": 40, "clusters": 8, "floor": 0.0625, "ceiling": 0.995}
    share, plain = Figure(0.75, 0.7, 0.8, **shape), Figure(0.012, -0.001, 0.025, 40, 8)
    found = {"specialisation/exact/own": Figure(0.968, 0.95, 0.984, **shape)}
    for score in ("exact", "loss"):
        found |= {
            f"specialisation/{score}/{name}": share for name in ("diagonal", "off_diagonal", "index", "own_is_best")
        }
        found |= {f"specialisation/{score}/matrix/{e}/{d}": share for e in DOMAINS for d in (*DOMAINS, "general")}
    for domain in (*DOMAINS, "general", "all_domains"):
        for method in SYSTEMS:
            found[f"exact_match/{method}/{domain}/test"] = share
            found[f"exact_match/{method}/{domain}/train/form/question-0"] = share
            found[f"token_loss/{method}/{domain}/test"] = plain
            found[f"recovery/exact/{method}/{domain}"] = Figure(0.912, 0.88, 0.94, 40, 8)
    found["recovery/exact/sequential/1/all_domains"] = Figure(-0.1, None, None, 40, 1)
    found["comparison/exact/gate-oracle/all_domains"] = plain
    found["comparison/exact/gate-oracle/all_domains/p"] = Figure(0.03, n=40, clusters=8)
    for domain in (*DOMAINS, "general", "unknown"):
        found[f"routing/gate/accuracy/{domain}/test"] = share
        found |= {f"routing/gate/confusion/{domain}/{choice}": share for choice in (*DOMAINS, "no_expert")}
    found |= {f"uncovered/gate/left_out/{domain}": share for domain in (*DOMAINS, "all_domains")}
    found |= {f"uncovered/gate/general/{tokens}": share for tokens in (16, 256)}
    found |= {
        f"forgetting_general/{name}/{m}": plain
        for name in ("loss", "kl", "exact")
        for m in (*SYSTEMS[1:], "expert/law")
    }
    for run in ("sequential", "bank"):
        found |= {f"sequential/exact/{run}/R/{i}/{d}": share for i in (1, 2) for d in DOMAINS}
        found |= {f"sequential/exact/{run}/{name}": share for name in ("seen/1", "seen/2", "acc", "bwt", "forgetting")}
    return found


def evidence() -> Evidence:
    facts = (
        *(DomainFacts(d, 0.1, "k", d) for d in DOMAINS),
        DomainFacts("general", 0.0, "g", None),
        DomainFacts("unknown", 0.0, "u", None),
    )
    methods = (*SYSTEMS, *(f"expert/{d}" for d in DOMAINS), "sequential/0", "sequential/1")
    answers = tuple(Answer(method, "law", "test", "1", "g", "f", True, 1.0, 1, 1) for method in methods)
    decisions = tuple(Decision(gate, "law", "test", "1", "g", (0.0, 1.0, 0.0)) for gate in ("oracle", "gate"))
    loads = tuple(
        SiteLoad("gate", f"model.layers.{layer}.mlp.up_proj", d, (0.2, 0.5, 0.3))
        for layer in (0, 1)
        for d in (*DOMAINS, "general")
    )
    uncovered = tuple(UncoveredPrompt("gate", "general", tokens, "1", "g", True) for tokens in (16, 256))
    return Evidence(facts, DOMAINS, answers, decisions, loads, DOMAINS, uncovered)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("run")
    evidence().write(folder / "evidence.jsonl")
    append_curve(
        folder, [CurvePoint("distill", d, step, "train/loss", 1.0 / (1 + step)) for d in DOMAINS for step in (0, 1)]
    )
    append_curve(folder, [CurvePoint("evaluate", None, 0, "token_loss/gate/law/test", 0.5)])
    RunRecord(
        NASTY, "2026-01-01T00:00:00+00:00", ("distill",), {"distill": 1.5}, "abc", "def", {"data": 0}, {"torch": "2.13"},
        BaseEntry("bundled", "f" * 64), (BlockEntry(NASTY, 1, "d" * 64, NASTY),), figures(), ("a <b>note</b>",),
    ).write(folder)  # fmt: skip
    assert write_report(folder) == folder / "report.html"
    return folder


class Page(HTMLParser):
    """Tags that open, with their attributes; void tags and self-closing ones are not awaited."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_asks_nothing_of_the_network(run):
    text = (run / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img", "object", "embed", "base"}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "@import" not in text and not re.search(r"url\((?!#)", text)


def test_names_are_escaped_in_text_pictures_and_tables(run):
    text = (run / "report.html").read_text()
    assert "<script" not in text and "<b>note" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x_1$ |" in text
    assert "<script" not in (run / "report.md").read_text().replace("\\<script", "")


def test_every_section_and_figure_is_there(run):
    page = Page((run / "report.html").read_text())
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids)) or not {i for i in ids if ids.count(i) > 1 and i in SECTIONS}
    assert set(SECTIONS) <= set(ids)
    pictures = [attributes for tag, attributes in page.tags if tag == "svg" and "aria-hidden" not in attributes]
    assert len(pictures) == len(DRAWN)
    assert all(picture["role"] == "img" and len(picture["aria-label"] or "") > 20 for picture in pictures)
    assert {path.stem for path in (run / "figures").glob("*.svg")} == DRAWN
    assert {path.stem for path in (run / "figures").glob("*.png")} == {"experts_exact", "experts_loss"}


def test_every_figure_has_its_numbers_beside_it(run):
    text = (run / "report.html").read_text()
    pictures = re.findall(r"<figure>.*?</figure>", text, flags=re.DOTALL)
    assert len(pictures) == len(DRAWN)
    assert all(
        re.search(
            r"</svg></div></div>(?:<p class=\"legend\">[^<]+</p>)?<details><summary>.*<table>.*<td",
            picture,
            flags=re.DOTALL,
        )
        for picture in pictures
    )


def test_text_of_a_picture_is_at_least_nine_pixels_high_on_a_narrow_page_which_scrolls(run):
    text = (run / "report.html").read_text()
    drawings = re.findall(r'<div class="picture" tabindex="0"><div class="drawing" style="width:(\d+)px;min-width:(\d+)px">(.*?)</svg></div>', text, flags=re.DOTALL)  # fmt: skip
    assert len(drawings) == len(DRAWN)
    for width, least, drawing in drawings:
        sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:[\w.]+ )*?([\d.]+)px", drawing)]
        assert min(sizes) * 4 / 3 * int(least) / int(width) >= 9
    assert re.search(r"\.picture, \.scroll \{ overflow-x: auto; \}", text)


def test_the_names_of_a_heatmaps_rows_stay_in_sight_and_are_drawn_once(run):
    text = (run / "report.html").read_text()
    for name in ("experts_exact", "confusion_gate", "sites_gate"):
        sides = re.search(
            rf'<svg class="labels" aria-hidden="true" viewBox="0 0 ([\d.]+) ([\d.]+)" style="width:([\d.]+)%">'
            rf'<use href="#drawing-{name}"/></svg>'
            rf'<svg role="img" aria-label="[^"]+" viewBox="([\d.]+) 0 ([\d.]+) \2" style="width:([\d.]+)%">'
            rf'<g id="drawing-{name}">',
            text,
        )
        assert sides is not None, name
        labels, _, share, start, width, rest = map(float, sides.groups())
        assert labels == start and share + rest == pytest.approx(100, abs=0.01)
        assert share / rest == pytest.approx(labels / width, rel=1e-3)
        svg = (run / "figures" / f"{name}.svg").read_text()
        # Names of rows end left of the cut, names of columns begin right of it.
        ends, starts = (
            [float(x) for x in re.findall(rf'text-anchor: {anchor};[^>]* x="([\d.]+)"', svg)]
            for anchor in ("end", "start")
        )
        assert len(ends) >= 2 and all(0 < labels - end < 8 for end in ends)
        assert len(starts) >= 3 and all(start > labels - 0.01 for start in starts)


def test_sites_that_agree_are_one_row_and_the_table_has_each(run):
    svg = (run / "figures" / "sites_gate.svg").read_text()
    assert "0 · up_proj … 1 · up_proj (2)" in svg
    text = (run / "report.html").read_text()
    assert "Neighbouring rows that agree are drawn as one" in text
    assert '<th scope="row">0 · up_proj</th>' in text and '<th scope="row">1 · up_proj</th>' in text


def test_only_neighbouring_rows_that_read_alike_are_folded():
    words = {(row, "law"): word for row, word in zip("abcde", ("100", "100", "99", "100", "100"), strict=True)}
    assert folded("abcde", ["law"], words) == {"a": "a … b (2)", "c": "c", "d": "d … e (2)"}
    assert folded("abcde", ["law"], words | {("b", "law"): "98"}) == {"a": "a", "b": "b", "c": "c", "d": "d … e (2)"}


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (0.0, "0"),
        (0.0001, "0"),
        (0.004, "<1"),
        (0.006, "1"),
        (0.994, "99"),
        (0.996, ">99"),
        (0.9999, "100"),
        (1, "100"),
    ],
)
def test_a_cell_is_0_or_100_only_where_it_is_that_to_a_tenth_of_a_per_cent(value, word):
    assert share(value) == word


def test_a_cell_that_was_not_measured_is_a_dash_that_the_legend_explains(run, tmp_path):
    drawn = (run / "figures" / "experts_exact.svg").read_text()
    assert "–" not in drawn
    record = RunRecord.read(run)
    fewer = {n: f for n, f in record.figures.items() if n != "exact_match/teacher/law/test"}
    RunRecord("less", figures=fewer).write(tmp_path)
    evidence().write(tmp_path / "evidence.jsonl")
    text = write_report(tmp_path).read_text()
    assert (tmp_path / "figures" / "experts_exact.svg").read_text().count("–") == 1
    assert '<p class="legend">– was not measured: the teacher reads the document in context' in text
    assert "– was not measured: the teacher" in (tmp_path / "report.md").read_text()


def test_forms_are_put_into_words_where_the_data_tells(run, tmp_path):
    assert "What the forms ask" not in (run / "report.html").read_text()
    RunRecord("told", figures=RunRecord.read(run).figures).write(tmp_path)
    replace(evidence(), forms={"question-0": "What is the <noun>?", "ask-9": "never asked"}).write(
        tmp_path / "evidence.jsonl"
    )
    text = write_report(tmp_path).read_text()
    words = text[text.index("What the forms ask") :]
    assert words.index('<th scope="row">question-0</th><td>What is the &lt;noun&gt;?</td>') < words.index("</table>")
    assert "never asked" not in text


def test_pictures_are_well_formed_and_keep_their_words(run):
    for path in (run / "figures").glob("*.svg"):
        words = " ".join(
            "".join(node.itertext()) for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
        )
        assert words.strip(), path.name
        assert "DejaVu" not in path.read_text() and "system-ui" in path.read_text()
        if path.stem in ("experts_exact", "confusion_gate", "growth_matrix"):
            assert NASTY in words


def test_the_verdict_says_the_key_numbers_in_words(run):
    text = (run / "report.html").read_text().replace("\u00a0", " ")
    verdict = text[text.index('id="verdict"') : text.index("<nav")]
    for words in (
        "96.8 %",
        "95 % to 98.4 %",
        "The teacher, which reads the document, gets 99.5 %",
        "91.2 %",
        "0.012 nats",
        "75 points",
    ):
        assert words in verdict


def test_a_notice_stands_above_every_number(run, tmp_path):
    assert 'class="notice"' not in (run / "report.html").read_text()
    record = RunRecord.read(run)
    RunRecord("smoke", figures=record.figures, notice="no <number> means anything").write(tmp_path)
    text = write_report(tmp_path).read_text()
    assert text.index('<p class="notice" role="note">no &lt;number&gt; means anything</p>') < text.index('id="verdict"')
    assert (tmp_path / "report.md").read_text().splitlines()[4] == "> **no \\<number\\> means anything**"


def test_headline_numbers_are_not_taken_for_training_curves(run):
    assert "evaluate" not in (run / "figures" / "training.svg").read_text()


def test_the_same_records_give_the_same_bytes(run):
    paths = [run / "report.html", run / "report.md", *sorted((run / "figures").iterdir())]
    before = [path.read_bytes() for path in paths]
    write_report(run)
    assert [path.read_bytes() for path in paths] == before


def test_markdown_links_every_picture_and_keeps_its_tables_square(run):
    text = (run / "report.md").read_text()
    assert set(re.findall(r"\(figures/([\w-]+)\.svg\)", text)) == DRAWN
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_run_that_measured_nothing_says_so_section_by_section(tmp_path):
    RunRecord("bare").write(tmp_path)
    text = write_report(tmp_path).read_text()
    page = Page(text)
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert not ids & set(SECTIONS)
    absent = text[text.index("Not in this run") :]
    assert absent.count("<li>") == len(SECTIONS)
    assert list((tmp_path / "figures").iterdir()) == []


def test_only_the_missing_part_is_left_out(run, tmp_path):
    record = RunRecord.read(run)
    fewer = {name: figure for name, figure in record.figures.items() if not name.startswith("sequential/")}
    RunRecord("less", figures=fewer).write(tmp_path)
    evidence().write(tmp_path / "evidence.jsonl")
    text = write_report(tmp_path).read_text()
    ids = {attributes.get("id") for _, attributes in Page(text).tags}
    assert set(SECTIONS) - ids == {"growth", "training"}
    assert "no sequential run was measured" in text and "no training curve was recorded" in text


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no record\.json"):
        write_report(tmp_path)


def test_the_configuration_is_shown_where_there_is_one(run, tmp_path):
    RunRecord("configured").write(tmp_path)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("plan: [<distill>]\n")
    assert "plan: [&lt;distill&gt;]" in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (0.0, "0.000"),
        (0.96849, "0.968"),
        (-0.25, "−0.250"),
        (0.0025, "0.0025"),
        (0.00004, "4e−05"),
        (123.456, "123.5"),
    ],
)
def test_numbers_are_short_and_never_rounded_to_nothing(value, words):
    assert number(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(1.0, "100 %"), (0.9999, "> 99.9 %"), (0.968, "96.8 %"), (0.95, "95 %"), (-0.05, "−5 %"), (0.0, "0 %")],
)
def test_a_share_is_100_per_cent_only_when_it_is(value, words):
    assert percent(value).replace("\u00a0", " ") == words


def test_a_value_without_interval_stands_alone():
    assert with_interval(Figure(0.5)) == "0.500"
    assert with_interval(Figure(0.5, 0.4, 0.6)) == "0.500 [0.400, 0.600]"


def test_all_figures_of_the_record_are_in_the_appendix(run):
    text = (run / "report.html").read_text()
    rows = text[text.index("Every figure of the run") :].count('<th scope="row">')
    assert rows == len(json.loads((run / "record.json").read_text())["figures"])
