"""The page in a real browser: what a reader sees and clicks, that no script runs and that nothing is asked of other hosts.

Needs playwright's driver and a Chromium; where PMEMX_REQUIRE names "browser" their lack is a failure and no skip.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pmemx.store.journal import Journal
from pmemx.store.life import Life
from tests.page.conftest import later
from tests.page.page_banks import Hands, many, run_folder

OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PICTURES = os.environ.get("PMEMX_PICTURES", "")
"""A folder in which the tests leave pictures of what they saw, for eyes; none by default."""

READ = ("/experts", "/block?name=law", "/version?name=law&number=2", "/diff?name=law", "/routing", "/experts?at=3")


def missing() -> str:
    """What the browser tests lack, empty where they can run."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return "" if chromium() else "no Chromium is installed"


def chromium() -> str:
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if reason := missing():
        if "browser" in os.environ.get("PMEMX_REQUIRE", "").replace(",", " ").split():
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=OPTIONS)
        yield opened
        opened.close()


@contextmanager
def served(path: Path, *settings: str) -> Iterator[str]:
    """The address of a page that another process serves, as `pmemx bank serve` does."""
    code = (
        "from functools import partial\nfrom pathlib import Path\nfrom pmemx.page.serve import serve\n"
        "from pmemx.store.bank import Bank\n"
        f"serve(Bank(Path({str(path)!r})), port=0, {', '.join([*settings, 'announce=partial(print, flush=True)'])})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


class Reader:
    """A page in the browser that fails on errors in the console, on dialogs and on requests to other hosts."""

    def __init__(self, context, address: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(30_000)
        self.address, self.faults = "{0.scheme}://{0.netloc}".format(urlsplit(address)), list[str]()
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.faults.append(f"error {error}"))
        self.page.on("console", lambda line: self.faults.append(f"{line.type} {line.text}"))
        self.page.on("request", self._asked)
        self.page.goto(address)

    def _asked(self, request) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.address).netloc:
            self.faults.append(f"asked {request.url}")

    def open(self, path: str):
        return self.page.goto(self.address + path)

    def go(self, role: str, name: str | re.Pattern[str]) -> None:
        """Click what a reader would, and wait until the page that it leads to is there, styles included."""
        self.follow(self.page.get_by_role(role, name=name, exact=isinstance(name, str)).first)

    def follow(self, link) -> None:
        with self.page.expect_event("load"):
            link.click()

    def text(self) -> str:
        return self.page.inner_text("body")

    def picture(self, name: str) -> None:
        if PICTURES:
            self.page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


@pytest.fixture(scope="module")
def small(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The small bank with members, on a page that may change it."""
    folder = tmp_path_factory.mktemp("browser")
    shutil.copytree(stock / "governed", folder / "governed")
    run = run_folder(folder / "run")
    with served(folder / "governed" / "bank", "writable=True", f"record=Path({str(run)!r})") as address:
        yield address, folder / "governed"


@pytest.fixture
def reader(browser, small: tuple[str, Path]) -> Iterator[Reader]:
    """root, logged in."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        reader = Reader(context, f"{small[0]}/experts")
        assert reader.faults == [
            "error Failed to load resource: the server responded with a status of 401 (Unauthorized)"
        ]
        reader.faults.clear()
        reader.page.get_by_label("Your name in the bank").fill("root")
        reader.page.get_by_label("Your own token").fill("root's own")
        reader.picture("login")
        reader.go("button", "Log in")
        reader.page.get_by_role("heading", name="Experts").wait_for()
        yield reader
        assert reader.faults == []


def test_a_reader_walks_from_the_experts_to_every_page(reader: Reader):
    assert reader.page.title() == "Experts · bank · pmemx bank"
    assert "as root" in reader.text()
    reader.picture("experts")
    reader.go("link", "law")
    assert reader.page.get_by_role("heading", level=1).inner_text() == "law"
    reader.picture("block")
    reader.page.get_by_role("radio", name="from version 1").check()
    reader.page.get_by_role("radio", name="to version 2").check()
    reader.go("button", "Compare")
    assert reader.page.get_by_role("heading", level=1).inner_text() == "What changed"
    assert "apache-2.0" in reader.text() and "10.392" in reader.text()  # three times the square root of twelve
    reader.picture("diff")
    reader.go("link", "law@2")
    boxes = reader.page.locator("svg.lineage g.node rect")
    assert boxes.count() == 6
    assert all((box := boxes.nth(k).bounding_box()) and box["width"] > 100 for k in range(6))
    assert reader.page.locator("svg.lineage path.link").first.bounding_box()
    reader.picture("version")
    reader.go("link", "both laws version 1")
    assert reader.page.get_by_role("heading", level=1).inner_text() == "both laws version 1"
    reader.picture("version-of-a-merge")
    reader.go("link", "Routing")
    cell = reader.page.get_by_role("cell", name="80", exact=True)
    assert cell.evaluate("cell => getComputedStyle(cell).backgroundColor") == "rgb(24, 80, 131)"
    reader.picture("routing")
    reader.go("link", "Journal")
    assert reader.page.get_by_role("row").count() > 30
    reader.picture("journal")
    reader.page.get_by_label("Action").select_option("tag")
    reader.go("button", "Show")
    assert reader.page.get_by_role("row").count() == 2
    reader.go("link", "Members")
    assert "root" in reader.text() and "eve" in reader.text()
    reader.picture("members")
    reader.go("link", "Verify")
    reader.go("button", "Verify the bank now")
    assert "Sound" in reader.text()


def test_names_are_shown_and_no_script_of_theirs_runs(reader: Reader):
    reader.page.evaluate("window.stillHere = true")
    names = reader.page.get_by_role("rowheader").all_inner_texts()
    assert "<script>alert(1)</script>" in names and "\"><img src=x onerror='alert(2)'>" in names
    for name in names:
        reader.open("/experts")
        reader.go("link", name)
        if "expired" not in reader.page.inner_text(".lead"):
            reader.follow(reader.page.locator("p.lead a"))
            assert reader.page.locator("svg.lineage g.node").count() >= 1
    assert reader.page.locator("script, img, iframe").count() == 0


def test_the_policy_would_stop_a_script_even_if_one_came_through(reader: Reader):
    for image in ("<img src=/static/icon.svg onload=alert(3)>", "<img src=http://192.0.2.1/x.png>"):
        with reader.page.expect_console_message(lambda line: "Content Security Policy" in line.text):
            reader.page.evaluate(f"document.body.insertAdjacentHTML('beforeend', '{image}')")
    faults = [fault for fault in reader.faults if "Content Security Policy" in fault]
    assert len(faults) == 2 and faults == [fault for fault in reader.faults if not fault.startswith("asked")]
    reader.faults.clear()


def test_the_past_is_looked_at_and_left_again(reader: Reader):
    reader.go("link", "Snapshots")
    reader.picture("snapshots")
    reader.go("link", "View as of before three")
    assert "This is the past: the bank after entry" in reader.text()
    assert reader.page.get_by_role("rowheader").all_inner_texts() == ["law"]
    reader.picture("past")
    reader.go("link", "law")
    assert "This is the past:" in reader.text() and reader.page.get_by_role("radio").count() == 4
    assert reader.page.get_by_role("link", name="Archive …").count() == 0
    reader.go("link", "Back to the present")
    assert "This is the past:" not in reader.text()


def test_a_change_is_confirmed_and_then_stands_in_the_journal(reader: Reader, small: tuple[str, Path]):
    bank = later(small[1], Hands()).bank
    reader.go("link", "both laws")
    reader.go("link", "Archive …")
    reader.picture("change")
    reader.page.get_by_label("Why").fill("the browser said so")
    reader.go("button", "Archive")
    assert "archived" in reader.page.inner_text(".lead") and "the browser said so" in reader.text()
    bank = bank.__class__(bank.path, principal="root", token="root's own")
    assert Life(bank).state("both laws") == "archived"
    assert Journal(bank).entries("both laws", limit=1)[0].principal == "root"
    reader.go("link", "Restore …")
    reader.go("button", "Restore")
    assert Life(bank).state("both laws") == "activated"


def test_the_page_is_used_by_keyboard_and_read_by_a_screen_reader(reader: Reader):
    reader.page.keyboard.press("Tab")
    focused = "document.activeElement"
    assert reader.page.evaluate(f"{focused}.textContent") == "Skip to the content"
    reader.page.keyboard.press("Enter")
    assert reader.page.evaluate(f"{focused}.id") == "main"
    reader.page.keyboard.press("Tab")
    assert reader.page.evaluate(f"{focused}.name") == "text"
    assert reader.page.evaluate(f"getComputedStyle({focused}).outlineStyle") == "solid"
    reader.page.keyboard.type("both")
    reader.page.keyboard.press("Enter")
    reader.page.wait_for_url("**text=both**")
    assert reader.page.get_by_role("rowheader").all_inner_texts() == ["both laws"]
    for role in ("banner", "main", "contentinfo", "navigation", "search", "table"):
        assert reader.page.get_by_role(role).count() >= 1, role


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_light_and_in_dark(scheme: str, reader: Reader):
    reader.page.emulate_media(color_scheme=scheme)
    for path in READ:
        reader.open(path)
        found = reader.page.evaluate(CONTRASTS)
        assert len(found) > 20
        assert [line for line in found if line[0] < 4.5] == []
        reader.picture(f"{scheme}{re.sub(r'[^a-z]', '-', path)}")


def test_a_telephone_shows_every_page_without_scrolling_it_sideways(reader: Reader):
    reader.page.set_viewport_size({"width": 400, "height": 800})
    for path in (*READ, "/journal", "/members", "/snapshots", "/verify", "/change?action=archive&name=law"):
        reader.open(path)
        assert reader.page.evaluate("document.documentElement.scrollWidth") <= 400, path
        reader.picture(f"narrow{re.sub(r'[^a-z]', '-', path)}")


def test_ten_thousand_experts_are_found_and_leafed_through(browser, tmp_path: Path):
    many(tmp_path / "large", 10_000)
    with served(tmp_path / "large", "token='s3cret'") as address, browser.new_context() as context:
        reader = Reader(context, address)
        assert reader.page.url == f"{reader.address}/experts"  # the token has left the address
        assert "10 000 experts, page 1 of 100" in reader.text().replace("\u202f", " ")
        assert reader.page.get_by_role("rowheader").count() == 100
        reader.picture("many")
        reader.go("link", "next →")
        assert reader.page.get_by_role("rowheader").first.inner_text() == "block 00101"
        reader.page.get_by_label("Text").fill("block 0999")
        reader.go("button", "Show")
        assert reader.page.get_by_role("rowheader").count() == 10
        reader.go("link", "block 09999")
        reader.follow(reader.page.locator("p.lead a"))
        assert reader.page.locator("svg.lineage g.node").count() == 1
        reader.go("link", "Journal")
        assert reader.page.get_by_role("rowheader").first.inner_text() == "10000"
        assert reader.faults == []
        cookies = context.cookies()
        assert [(cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [(True, "Strict")]


# For every text that is seen: the contrast between its colour and the nearest ground behind it, as WCAG 2.1 defines it.
CONTRASTS = """() => {
  const light = colour => {
    const [r, g, b] = colour.map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return matchMedia('(prefers-color-scheme: dark)').matches ? [0, 0, 0] : [255, 255, 255];
  };
  const lines = [];
  for (const element of document.querySelectorAll('body *')) {
    if (element.closest('svg') || !element.checkVisibility() || element.matches('.skip')) continue;
    const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join('');
    if (!text) continue;
    const style = getComputedStyle(element);
    const [one, two] = [light(parse(style.color)), light(ground(element))].sort((a, b) => b - a);
    lines.push([(one + 0.05) / (two + 0.05), element.className || element.tagName, text.slice(0, 30)]);
  }
  return lines;
}"""
