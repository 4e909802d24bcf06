"""The page of a bank: what it shows to whom, that looking changes nothing, and what it refuses."""

import html
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from pmemx.core.access import Role
from pmemx.core.errors import ConfigError, DataError, PmemxError, StorageError
from pmemx.core.event import Action
from pmemx.core.tag_policy import Bound, TagPolicy
from pmemx.page import app as page_app
from pmemx.page import questions
from pmemx.page.app import HEADERS, STATUS, create_app
from pmemx.page.serve import serve
from pmemx.page.words import number, size, visible
from pmemx.store.bank import Bank
from pmemx.store.evaluations import Evaluations
from pmemx.store.governed import GovernedStore
from pmemx.store.journal import Journal
from pmemx.store.life import Life
from pmemx.store.members import Members
from pmemx.store.verification import findings
from tests.page.page_banks import HIDDEN, NASTY, Hands, fill, many, put, run_folder, with_members

HOST = "http://127.0.0.1"
# Every GET that shows something of a bank, with what to ask; a new route must be added here.
SHOWN = {
    "/": {},
    "/experts": {},
    "/block": {"name": "law"},
    "/version": {"name": "law", "number": 4},
    "/diff": {"name": "law", "before": 1, "after": 3},
    "/routing": {},
    "/journal": {},
    "/members": {},
    "/snapshots": {},
    "/verify": {"run": "true"},
    "/openapi.json": {},
} | {
    "/api/experts": {},
    "/api/block": {"name": "law"},
    "/api/version": {"name": "law", "number": 4},
    "/api/diff": {"name": "law", "before": 1, "after": 3},
    "/api/routing": {},
    "/api/journal": {},
    "/api/members": {},
    "/api/snapshots": {},
    "/api/verify": {"run": "true"},
}  # fmt: skip
OPEN = {"/login", "/static"}
CHANGES = {"/change": {"name": "law", "action": "archive"}}
ADMINISTRATORS = {"/journal", "/members", "/verify"}


@pytest.fixture
def client(store: GovernedStore) -> TestClient:
    """Whoever reaches a bank without members."""
    return TestClient(create_app(store.bank), base_url=HOST)


def paths(app: FastAPI) -> set[str]:
    """Every path that answers GET, in routers too."""
    found: set[str] = set()
    for route in _routes(app.routes):
        methods = getattr(route, "methods", None)
        if methods is None or "GET" in methods:
            found.add(route.path)
    return found


def _routes(routes: list) -> Iterator:
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from _routes(inner.routes)


def seal(client: httpx.Client, path: str) -> str:
    """What the form on a page carries."""
    found = re.search(r'name="seal" value="([0-9a-f]{64})"', client.get(path).text)
    assert found
    return found[1]


def log_in(client: TestClient, principal: str, own_token: str, token: str = "") -> httpx.Response:
    fields = {"seal": seal(client, "/login"), "principal": principal, "own_token": own_token, "token": token}
    return client.post("/login", data=fields, follow_redirects=False)


def as_member(store: GovernedStore, principal: str, *, writable: bool = False) -> TestClient:
    client = TestClient(create_app(store.bank, writable=writable), base_url=HOST)
    assert log_in(client, principal, f"{principal}'s own").status_code == 303
    return client


def actions(bank: Bank, after: int) -> set[str]:
    return {event.action for event in Journal(bank).entries(limit=1000) if event.seq > after}


class Tags(HTMLParser):
    """Every tag that opens, with its attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


# ------------------------------------------------------------------------------------------------------- what is shown


def test_every_route_is_known_to_these_tests(client: TestClient):
    assert isinstance(client.app, FastAPI)
    assert paths(client.app) == SHOWN.keys() | OPEN | CHANGES.keys()


def test_every_page_answers_whoever_may_see_it(client: TestClient):
    for path, query in SHOWN.items():
        answer = client.get(path, params=query)
        kind = "application/json" if path.startswith("/api/") or path == "/openapi.json" else "text/html; charset=utf-8"
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind), path


def test_the_experts_are_listed_with_what_tells_them_apart(client: TestClient):
    found = client.get("/api/experts").json()
    law = next(one for one in found["blocks"] if one["name"] == "law")
    assert (law["number"], law["state"], law["base_name"], law["uses"]) == (4, "activated", "tiny", 1)
    assert (law["tags"], law["other_tags"]) == ([], {"prod": 2})
    assert found["total"] == 5 + len(NASTY)
    text = client.get("/experts").text
    assert ">law</bdi></a>" in text and ">team:legal/secret contract</bdi></a>" in text and law["digest"][:12] in text
    assert '<span class="tag"><bdi>prod</bdi>@2</span>' in text


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"text": "LAW"}, ["both laws", "law", "law@1"]),
        ({"state": "archived"}, ["tax"]),
        ({"state": "expired"}, ["gone"]),
        ({"domain": "domain of law"}, ["law"]),
        ({"base": "tiny"}, ["law"]),
        ({"base": "bbbb", "text": "both"}, ["both laws"]),
        ({"tag": "prod"}, ["law"]),
        ({"text": "%"}, ["../etc/passwd?a=b&c#d%2e"]),
    ],
)
def test_experts_are_filtered(query: dict[str, str], names: list[str], client: TestClient):
    found = client.get("/api/experts", params=query | {"page": 10**6}).json()
    assert (found["page"], [one["name"] for one in found["blocks"]]) == (1, names)


def test_a_block_tells_its_versions_scores_usage_and_life(client: TestClient):
    law = client.get("/api/block", params={"name": "law"}).json()
    assert [one["number"] for one in law["versions"]] == [4, 3, 2, 1]
    four, three, two, one = law["versions"]
    assert four["restores"] == 2 and four["message"] == "three was worse" and four["digest"] == two["digest"]
    assert (four["uses"], four["relevance"]) == (1, 0.75)
    assert two["tags"] == ["prod"]
    assert one["scores"] == {
        "loss": {"value": 1.5, "low": 1.25, "high": 1.75, "n": 40, "clusters": 8, "floor": 0.5, "ceiling": 2.0}
    }
    assert one["committed"] == {"entry": 1, "time": "2026-01-01T00:00:00+00:00", "principal": "root"}
    assert three["committed"]["time"] == "2026-01-01T01:00:00+00:00"
    assert law["standing"] == 2.0  # 1 + log2(1 + one use)
    assert [(move["from"], move["to"], move["trigger"]) for move in law["life"]] == [("generated", "activated", "use")]
    text = client.get("/block", params={"name": "law"}).text
    assert '1.125 <span class="soft">[1.000, 1.250]</span>' in text and "three was worse" in text


def test_an_expired_block_shows_its_tombstone(client: TestClient):
    gone = client.get("/api/block", params={"name": "gone"}).json()
    assert (gone["state"], gone["standing"]) == ("expired", None)
    assert "Only this tombstone is left" in client.get("/block", params={"name": "gone"}).text
    assert client.get("/version", params={"name": "gone", "number": 1}).status_code == 404


def test_versions_come_in_pages(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(questions, "ROWS", 3)
    first = client.get("/api/block", params={"name": "law"}).json()
    assert ([one["number"] for one in first["versions"]], first["older"]) == ([4, 3, 2], 2)
    rest = client.get("/api/block", params={"name": "law", "below": 2}).json()
    assert ([one["number"] for one in rest["versions"]], rest["older"]) == ([1], None)
    assert [one["committed"]["entry"] for one in first["versions"] + rest["versions"]] == [6, 5, 2, 1]


def test_a_version_tells_its_lineage_up_and_down(store: GovernedStore, client: TestClient):
    found = client.get("/api/version", params={"name": "law", "number": 2}).json()
    assert {(edge["earlier"], edge["link"], edge["later"]) for edge in found["lineage"]["edges"]} >= {
        ("law@1", "follows", "law@2"),
        ("law@2", "made from", "both laws@1"),
        ("law@1", "made from", "both laws@1"),
    }
    assert found["sites"] == [{"name": "model.q_proj", "rank": 2, "width_in": 3, "width_out": 4, "scale": 0.5}]
    assert found["digest"] == store.find("law@2").digest
    page = Tags(client.get("/version", params={"name": "law", "number": 2}).text)
    assert len(
        [tag for tag, attributes in page.tags if attributes.get("class", "") in ("node", "node own", "node absent")]
    ) == len(found["lineage"]["nodes"])


def test_a_version_is_never_taken_for_a_block_of_its_reference_as_name(store: GovernedStore, client: TestClient):
    assert (
        client.get("/api/version", params={"name": "law", "number": 1}).json()["digest"] != store.find("law@1").digest
    )
    assert client.get("/api/version", params={"name": "law@1"}).json()["digest"] == store.find("law@1").digest


def test_who_signed_a_version_is_told(store: GovernedStore, client: TestClient):
    found = store.bank.found("law@2")
    with store.bank.transaction() as now:
        signed = {"number": 2, "digest": found.version.digest, "key": "c" * 64, "bundle": "{}"}
        now.append(Action.SIGN, found.full, signed)
    assert client.get("/api/version", params={"name": "law", "number": 2}).json()["signatures"] == ["c" * 64]
    assert "c" * 64 in client.get("/version", params={"name": "law", "number": 2}).text


def test_a_difference_tells_card_scores_and_updates(client: TestClient):
    found = client.get("/api/diff", params={"name": "law", "before": 1, "after": 2}).json()
    assert found["card"]["licence"] == {"kind": "changed", "before": "MIT", "after": "apache-2.0"}
    assert found["scores"]["exact"]["delta"] == 0.25
    assert found["recorded"]["loss"]["delta"] == -0.375  # version 4 has the bytes of 2, and so its figures
    (site,) = found["sites"]
    # Factors of ones, then of twos: a rank-one update four times as large in the same direction.
    assert site["norms"] == pytest.approx([12**0.5, 4 * 12**0.5])
    assert site["distance"] == pytest.approx(3 * 12**0.5)
    assert site["cosine"] == pytest.approx(1)


def test_equal_bytes_show_no_difference(client: TestClient):
    found = client.get("/api/diff", params={"name": "law", "before": 2, "after": 4}).json()
    assert found["equal"] and found["distance"] == 0.0 and found["card"] == {}
    assert "their bytes are the same" in client.get("/diff", params={"name": "law", "before": 2, "after": 4}).text


def test_the_last_change_is_what_a_difference_shows_by_itself(client: TestClient):
    found = client.get("/api/diff", params={"name": "law"}).json()
    assert (found["before"]["number"], found["after"]["number"]) == (3, 4)
    found = client.get("/api/diff", params={"name": "law", "other": "both laws"}).json()
    assert [found[side]["name"] for side in ("before", "after")] == ["law", "both laws"]


def test_routing_shows_the_run_and_the_answers(store: GovernedStore, tmp_path: Path):
    client = TestClient(create_app(store.bank, record=run_folder(tmp_path / "run")), base_url=HOST)
    found = client.get("/api/routing").json()
    assert found["run"]["gate"] == "gate" and found["run"]["gates"] == ["oracle", "gate"]
    assert found["run"]["columns"] == ["law", "team:legal/secret contract", "no expert"]
    law = found["run"]["domains"][0]
    assert (law["domain"], law["n"], law["expert"]) == ("law", 3, "law")
    assert law["weights"] == pytest.approx([0.8, 0.1, 0.1])
    assert found["run"]["site_columns"] == ["law", "hush", "general"]
    assert found["run"]["sites"] == [{"site": f"model.layers.{n}.q_proj", "weights": [0.8, 0.75, 0.9]} for n in (0, 1)]
    assert found["answers"]["columns"] == ["law", "both laws"]
    assert found["answers"]["rows"][0]["weights"] == [0.75, 0.2]
    text = client.get("/routing").text
    assert '<td class="heat shade-8 right">80</td>' in text and "&lt;i&gt;routing&lt;/i&gt;" in text
    assert client.get("/routing", params={"gate": "other"}).status_code == 400


def test_a_folder_without_a_record_is_refused_before_anything_is_served(store: GovernedStore, tmp_path: Path):
    with pytest.raises(DataError):
        create_app(store.bank, record=tmp_path)


def test_the_journal_is_filtered_and_comes_in_pages(
    store: GovernedStore, client: TestClient, monkeypatch: pytest.MonkeyPatch
):
    rows = client.get("/api/journal", params={"name": "law", "action": "tag"}).json()["entries"]
    assert [row["detail"] for row in rows] == [{"tag": "prod", "number": 2, "reason": "it is good"}]
    assert client.get("/api/journal", params={"principal": "nobody"}).json()["entries"] == []
    monkeypatch.setattr(questions, "ROWS", 20)
    first = client.get("/api/journal").json()
    second = client.get("/api/journal", params={"before": first["next"]}).json()
    entries = [row["entry"] for row in first["entries"] + second["entries"]]
    assert entries == list(range(Journal(store.bank).head()[0], 0, -1)) and second["next"] is None
    assert first["entries"][0]["hash"] == Journal(store.bank).head()[1]


def test_the_digests_of_secrets_are_not_shown(governed: GovernedStore):
    root = as_member(governed, "root")
    entry = root.get("/api/journal", params={"action": "enrol"}).json()["entries"][-1]
    assert entry["detail"] == {"principal": "root", "token": True}


def test_the_past_is_shown_with_a_banner_on_every_page(store: GovernedStore, client: TestClient):
    then = client.get("/api/block", params={"name": "law", "at": "before three"}).json()
    assert [one["number"] for one in then["versions"]] == [2, 1] and then["tags"] == {}
    assert client.get("/api/experts", params={"at": "1"}).json()["total"] == 1
    for path, query in SHOWN.items():
        if path.startswith("/api/") or path in ("/openapi.json", "/"):
            continue
        number = {"number": 2} if path == "/version" else {"after": 2} if path == "/diff" else {}
        text = client.get(path, params=query | number | {"at": "before three"}).text
        assert "This is the past:" in text
        # Every way on from here stays in the past, but for the one that leads back, and other moments.
        for address in re.findall(r'<a (?:aria-[^>]* )?href="([^"]+)"', text.split("<main")[1].split("</main")[0]):
            assert "at=before+three" in address or re.search(r"at=(\d+|before%20three)$", address), address
    assert client.get("/experts", params={"at": "999"}).status_code == 404
    assert client.get("/experts", params={"at": "9" * 400}).status_code == 404


def test_verifying_tells_of_an_edited_byte(store: GovernedStore, client: TestClient):
    assert client.get("/api/verify").json() == {"ran": False, "findings": []}
    assert client.get("/api/verify", params={"run": "true"}).json() == {"ran": True, "findings": []}
    weights = store.bank.found("law").weights
    (file,) = store.bank.path.glob(f"blobs/*/*/{weights}")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert len(client.get("/api/verify", params={"run": "true"}).json()["findings"]) >= 1
    assert "block &#39;law&#39;" in client.get("/verify", params={"run": "true"}).text


def test_a_bank_that_is_not_there_yet_is_shown_as_empty_and_not_made(tmp_path: Path):
    client = TestClient(create_app(Bank(tmp_path / "none")), base_url=HOST)
    assert client.get("/api/experts").json()["total"] == 0
    for path in ("/experts", "/routing", "/journal", "/members", "/snapshots", "/verify"):
        assert client.get(path).status_code == 200
    assert not (tmp_path / "none").exists()


def test_many_readers_at_once_get_the_same_answers(store: GovernedStore, tmp_path: Path):
    for bank in (store.bank, Bank(tmp_path / "none")):
        client = TestClient(create_app(bank), base_url=HOST)
        expected = client.get("/api/experts").json()
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(client.get, "/api/experts") for _ in range(40)]
        assert [answer.result().json() for answer in answers] == [expected] * 40


def test_a_bank_whose_ledger_is_on_postgresql_has_the_same_page(tmp_path: Path, database: str):
    store = GovernedStore(tmp_path / "bank", database, principal="root")
    put(store, "law", 1.0)
    put(store, "law", 2.0)
    store.tag("law@1", "prod")
    client = TestClient(create_app(store.bank, writable=True), base_url=HOST)
    for path, query in SHOWN.items():
        asked = query | {"number": 2} if "number" in query else query | {"after": 2} if "after" in query else query
        assert client.get(path, params=asked).status_code == 200, path
    assert client.get("/api/block", params={"name": "law"}).json()["tags"] == {"prod": 1}
    assert change(client, "archive").status_code == 303
    assert Life(store.bank).state("law") == "archived"
    with_members(store)
    assert client.get("/experts").status_code == 401


def test_ten_thousand_experts_come_a_hundred_at_a_time(tmp_path: Path):
    assert list(findings(many(tmp_path / "small", 50))) == []
    client = TestClient(create_app(many(tmp_path / "large", 10_000)), base_url=HOST)
    last = client.get("/api/experts", params={"page": 100}).json()
    assert (last["total"], last["pages"], len(last["blocks"])) == (10_000, 100, 100)
    assert last["blocks"][-1]["name"] == "block 10000"
    assert len(client.get("/experts").text) < 200_000


# -------------------------------------------------------------------------------------- looking changes nothing at all


def test_looking_changes_nothing(store: GovernedStore, client: TestClient):
    head = Journal(store.bank).head()
    for path, query in SHOWN.items():
        client.get(path, params=query)
    assert Journal(store.bank).head() == head


def test_where_there_are_members_looking_is_only_noted(governed: GovernedStore):
    client = as_member(governed, "root")
    before = Journal(governed.bank).head()[0]
    for path, query in SHOWN.items():
        assert client.get(path, params=query).status_code == 200
    assert actions(governed.bank, before) == {Action.READ}


def test_only_a_difference_loads_torch(store: GovernedStore):
    code = (
        "import sys\nfrom pathlib import Path\nfrom fastapi.testclient import TestClient\n"
        "from pmemx.page.app import create_app\nfrom pmemx.store.bank import Bank\n"
        f"client = TestClient(create_app(Bank(Path({str(store.path)!r}))), base_url='http://127.0.0.1')\n"
        "for path in ('/experts', '/block?name=law', '/version?name=law', '/routing', '/journal', '/verify?run=1'):\n"
        "    assert client.get(path).status_code == 200, path\n"
        "print('torch' in sys.modules)\n"
        "assert client.get('/diff?name=law').status_code == 200\nprint('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


# ---------------------------------------------------------------------------------------------------- hostile contents


def everything(client: TestClient) -> Iterator[tuple[str, str]]:
    for path, query in SHOWN.items():
        names = [{"name": name} for name in NASTY] if "name" in query else [{}]
        for name in names:
            asked = name if name else query
            answer = client.get(path, params=asked)
            assert answer.status_code == 200, (path, asked)
            yield path, answer.text


def test_names_and_texts_are_shown_and_never_obeyed(client: TestClient):
    harmless = {"script", "img", "i", "b"}
    for path, text in everything(client):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), path
        if path.startswith("/api/") or path == "/openapi.json":
            assert text.isascii()
            json.loads(text)
            continue
        page = Tags(text)
        assert page.open == []
        assert not {tag for tag, _ in page.tags} & harmless
        for _, attributes in page.tags:
            assert not [key for key in attributes if key.startswith("on") or key == "style"]
            for key in ("href", "src", "action"):
                assert (attributes.get(key) or "/").startswith(("/", "#main"))
    shown = client.get("/experts").text
    for name in NASTY:
        assert (
            f"<bdi>{html.escape(name, quote=True)}</bdi>".replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in shown
        )
    assert "\\u001b[31mred\\u0007 \\u202egnp.exe\\u2066" in shown


def test_what_is_asked_is_not_obeyed_either(client: TestClient):
    attack = '"><script>alert(1)</script>' + HIDDEN
    for path in ("/experts", "/block", "/journal", "/login", "/version", "/diff"):
        asked = dict.fromkeys(("text", "name", "next", "domain", "base", "tag", "state", "sort"), attack)
        for query in (asked, {"text": attack, "name": attack, "next": attack}, {"at": attack}):
            text = client.get(path, params=query).text
            assert "<script" not in text and "\x1b" not in text and "\u202e" not in text


def test_hidden_characters_are_written_out():
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible("\x00\r\x9b\u2028\ud800") == "\\u0000\\u000d\\u009b\\u2028\\ud800"
    assert visible("שלום 👩‍🔬") == "שלום 👩‍🔬"


def test_numbers_and_sizes_are_readable():
    assert [number(value) for value in (None, 0.0, 1.0, 0.00012, -0.5, 12345.6, 12345)] == [
        "–", "0.000", "1.000", "0.00012", "−0.500", "12\u202f345.6", "12\u202f345",
    ]  # fmt: skip
    assert [size(count) for count in (0, 999, 1500, 2_000_000, 10**15)] == [
        "0\u00a0B", "999\u00a0B", "1.5\u00a0kB", "2.0\u00a0MB", "1000.0\u00a0TB",
    ]  # fmt: skip


def test_pages_can_be_read_by_everybody(client: TestClient):
    for path, query in SHOWN.items():
        if path.startswith("/api/") or path == "/openapi.json":
            continue
        page = Tags(client.get(path, params=query).text)
        tags = [tag for tag, _ in page.tags]
        assert ("html", {"lang": "en"}) in page.tags
        assert [tags.count(tag) for tag in ("title", "h1", "main", "header", "footer")][1:] == [1, 1, 1, 1]
        assert tags.count("table") == tags.count("caption")
        assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        for tag, attributes in page.tags:
            if tag in ("section", "svg") and "aria-labelledby" in attributes:
                assert set((attributes["aria-labelledby"] or "").split()) <= set(ids)
            if tag == "svg":
                assert attributes.get("aria-hidden") == "true" or attributes.get("role") == "img"


# --------------------------------------------------------------------------------------------------------- who comes in


def test_every_page_asks_for_the_token(store: GovernedStore):
    app = create_app(store.bank, token="a long secret", writable=True)
    right = {"Authorization": "Bearer a long secret"}
    for path, query in (SHOWN | CHANGES).items():
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic a long secret"}):
            client = TestClient(app, base_url="http://bank.example", client=(path + str(wrong), 1))
            answer = client.get(path, params=query, headers=wrong)
            assert answer.status_code == 401, path
            assert "law" not in answer.text.replace("name=law", "")
        assert client.get(path, params=query, headers=right).status_code == 200, path


def test_a_revoked_principal_is_refused_at_once_whatever_their_session(governed: GovernedStore):
    Members(governed.bank).grant("eve", Role.OWNER, "*")
    client = as_member(governed, "eve", writable=True)
    for path, query in (SHOWN | CHANGES).items():
        assert client.get(path, params=query).status_code == 200, path
    Members(governed.bank).revoke("eve")
    for path, query in (SHOWN | CHANGES).items():
        answer = client.get(path, params=query)
        assert (answer.status_code, "this principal was revoked" in answer.text) == (403, True), path
    assert log_in(client, "eve", "eve's own").status_code == 403


def test_a_bank_with_members_asks_everybody_who_they_are(governed: GovernedStore, monkeypatch: pytest.MonkeyPatch):
    # What the server itself may do is nobody else's.
    monkeypatch.setenv("PMEMX_TOKEN", "root's own")
    monkeypatch.setenv("PMEMX_PRINCIPAL", "root")
    app = create_app(governed.bank, writable=True)
    right = {"Pmemx-Principal": "root", "Pmemx-Token": "root's own"}
    for path, query in (SHOWN | CHANGES).items():
        client = TestClient(app, base_url=HOST, client=(path, 1))
        assert client.get(path, params=query).status_code == 401, path
        assert client.get(path, params=query, headers={"Pmemx-Principal": "root"}).status_code == 401, path
        wrong = {"Pmemx-Principal": "root", "Pmemx-Token": "eve's own"}
        assert client.get(path, params=query, headers=wrong).status_code == 403, path
        assert client.get(path, params=query, headers=right).status_code == 200, path


def test_nobody_is_shown_what_they_may_not_read(governed: GovernedStore, tmp_path: Path):
    app = create_app(governed.bank, record=run_folder(tmp_path / "run"))
    client = TestClient(app, base_url=HOST)
    log_in(client, "eve", "eve's own")
    for path, query in SHOWN.items():
        answer = client.get(path, params=query)
        assert answer.status_code == (403 if path.removeprefix("/api") in ADMINISTRATORS else 200), path
        assert "secret contract" not in answer.text and "hush" not in answer.text, path
    hidden = {"name": "team:legal/secret contract"}
    for path in ("/block", "/version", "/diff", "/journal"):
        assert client.get(path, params=hidden).status_code == 403
    assert client.get("/journal", params={"name": "law"}).status_code == 200
    routing = client.get("/api/routing").json()["run"]
    assert routing["columns"] == ["law", "not yours to read", "no expert"]
    assert [one["domain"] for one in routing["domains"]] == ["law", "general"]


def test_a_principal_without_a_token_cannot_come_in(governed: GovernedStore):
    client = TestClient(create_app(governed.bank), base_url=HOST)
    answer = log_in(client, "tom", "anything")
    assert answer.status_code == 403 and "has no token" in answer.text
    assert log_in(client, "tom", "").status_code == 401


def test_members_that_come_while_the_page_is_open_shut_it(store: GovernedStore):
    client = TestClient(create_app(store.bank), base_url=HOST)
    assert client.get("/experts").status_code == 200
    with_members(store)
    assert client.get("/experts").status_code == 401


def test_a_session_is_kept_from_scripts_and_other_sites_and_ends(store: GovernedStore, clock: Hands):
    client = TestClient(create_app(store.bank, token="s3cret"), base_url=HOST)
    answer = log_in(client, "", "", "s3cret")
    assert answer.status_code == 303 and answer.headers["location"] == "/experts"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "s3cret" not in cookie
    assert client.get("/experts").status_code == 200
    clock.turn(hours=13)
    assert client.get("/experts").status_code == 401
    clock.turn(hours=-13)
    assert client.post("/logout", data={"seal": seal(client, "/experts")}, follow_redirects=False).status_code == 303
    assert client.get("/experts").status_code == 401


def test_over_tls_the_cookie_stays_there(store: GovernedStore):
    client = TestClient(create_app(store.bank, token="s3cret"), base_url="https://bank.example")
    assert "secure" in log_in(client, "", "", "s3cret").headers["set-cookie"].lower()


def test_the_printed_link_works_once_and_leaves_no_token_in_the_address(store: GovernedStore):
    app = create_app(store.bank, token="s3cret")
    client = TestClient(app, base_url=HOST)
    answer = client.get("/login", params={"token": "s3cret"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/experts")
    assert client.get("/experts").status_code == 200
    again = TestClient(app, base_url=HOST).get("/login", params={"token": "s3cret"}, follow_redirects=False)
    assert again.status_code == 401


@pytest.mark.parametrize(
    "elsewhere", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:x", "/\n/x"]
)
def test_a_login_leads_to_no_other_site(elsewhere: str, store: GovernedStore):
    client = TestClient(create_app(store.bank, token="s3cret"), base_url=HOST)
    fields = {"seal": seal(client, "/login"), "token": "s3cret", "next": elsewhere}
    assert client.post("/login", data=fields, follow_redirects=False).headers["location"] == "/experts"


def test_a_login_leads_back_to_the_page_that_was_asked_for(store: GovernedStore):
    client = TestClient(create_app(store.bank, token="s3cret"), base_url=HOST)
    asked = client.get("/block", params={"name": "law"})
    assert 'name="next" value="/block?name=law"' in asked.text


def test_guessing_is_slowed_down(governed: GovernedStore, clock: Hands):
    client = TestClient(create_app(governed.bank), base_url=HOST)
    before = Journal(governed.bank).head()[0]
    answers = [log_in(client, "root", f"guess {number}").status_code for number in range(15)]
    assert answers == [403] * 10 + [429] * 5
    assert Journal(governed.bank).head()[0] == before + 10  # each refusal is in the journal, and no more
    assert log_in(client, "root", "root's own").status_code == 429
    clock.turn(minutes=2)
    assert log_in(client, "root", "root's own").status_code == 303


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "localhost.evil.example:80", "", "["]
)
def test_another_name_for_this_machine_is_refused(host: str, client: TestClient):
    assert client.get("/experts", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost", "[::1]:8765", "LOCALHOST:1"])
def test_this_machine_is_reached_by_its_own_names(host: str, client: TestClient):
    assert client.get("/experts", headers={"Host": host}).status_code == 200


def test_every_answer_tells_the_browser_what_to_refuse(client: TestClient):
    answers = [client.get(path, params=SHOWN.get(path)) for path in (*SHOWN, "/login", "/static/page.css", "/nope")]
    answers += [client.get("/block"), client.post("/change"), client.get("/experts", headers={"Host": "evil.example"})]
    for answer in answers:
        assert HEADERS.items() <= {key: answer.headers[key] for key in HEADERS}.items()
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert "script-src" not in policy


def test_serving_to_other_machines_asks_for_a_token(store: GovernedStore):
    for host in ("0.0.0.0", "::", "192.168.1.5", "bank.example", ""):
        with pytest.raises(ConfigError, match="no token is set"):
            serve(store.bank, host=host)


def test_a_port_that_is_taken_is_told(store: GovernedStore):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(StorageError, match="cannot be served"):
        serve(store.bank, port=taken.getsockname()[1])


# ------------------------------------------------------------------------------------------------------------- changes


@pytest.fixture
def writer(store: GovernedStore) -> TestClient:
    return TestClient(create_app(store.bank, writable=True), base_url=HOST)


def change(client: TestClient, action: str, name: str = "law", **fields: object) -> httpx.Response:
    made = {"seal": seal(client, f"/change?{urlencode({'action': action, 'name': name})}")}
    data = made | {"action": action, "name": name, "reason": "said so"} | fields
    return client.post("/change", data=data, follow_redirects=False)


def test_a_writable_page_makes_every_change(store: GovernedStore, writer: TestClient):
    steps: list[tuple[str, dict[str, object], Callable[[], bool]]] = [
        ("tag", {"number": 1, "tag": "old"}, lambda: store.tags("law") == {"old": 1, "prod": 2}),
        ("untag", {"tag": "old"}, lambda: store.tags("law") == {"prod": 2}),
        ("rollback", {"number": 3}, lambda: (len(store.history("law")), fill(store, "law")) == (5, 3.0)),
        ("archive", {}, lambda: Life(store.bank).state("law") == "archived"),
        ("restore", {}, lambda: Life(store.bank).state("law") == "activated"),
        ("freeze", {}, lambda: Life(store.bank).state("law") == "frozen"),
        ("thaw", {}, lambda: Life(store.bank).state("law") == "activated"),
    ]
    for action, fields, holds in steps:
        answer = change(writer, action, **fields)
        assert (answer.status_code, answer.headers["location"]) == (303, "/block?name=law"), action
        assert holds(), action
    reasons = [
        event.detail.get("reason", event.detail.get("message")) for event in Journal(store.bank).entries(limit=7)
    ]
    assert reasons == ["said so"] * 7


def test_a_tag_goes_to_the_version_and_not_to_a_block_of_that_reference(store: GovernedStore, writer: TestClient):
    assert change(writer, "tag", number=1, tag="old").status_code == 303
    assert store.tags("law") == {"old": 1, "prod": 2} and store.tags("law@1") == {}


def test_a_page_that_is_read_only_has_no_form_and_takes_none(store: GovernedStore, client: TestClient):
    assert "/change" not in client.get("/block", params={"name": "law"}).text
    head = Journal(store.bank).head()
    assert client.get("/change", params=CHANGES["/change"]).status_code == 403
    assert client.post("/change", data={"action": "archive", "name": "law"}).status_code == 403
    for path in SHOWN:
        assert client.post(path).status_code == 405
    assert Journal(store.bank).head() == head


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json"},
    ],
)
def test_a_form_from_another_site_changes_nothing(headers: dict[str, str], store: GovernedStore, writer: TestClient):
    head = Journal(store.bank).head()
    data = {"seal": seal(writer, "/change?action=archive&name=law"), "action": "archive", "name": "law"}
    assert writer.post("/change", data=data, headers=headers).status_code == 403
    assert writer.post("/login", data=data, headers=headers).status_code == 403
    assert Journal(store.bank).head() == head


@pytest.mark.parametrize("bad", ["", "0" * 64, "ü", "seal of another"])
def test_a_form_without_the_seal_of_its_session_changes_nothing(bad: str, governed: GovernedStore):
    writer, other = as_member(governed, "root", writable=True), as_member(governed, "eve", writable=True)
    given = seal(other, "/experts") if bad == "seal of another" else bad
    answer = writer.post("/change", data={"seal": given, "action": "archive", "name": "law"})
    assert answer.status_code == 403 and "another session" in answer.text
    assert Life(governed.bank).state("law") == "activated"


def test_a_form_that_is_too_large_is_refused(writer: TestClient):
    data = {"seal": seal(writer, "/change?action=archive&name=law"), "name": "x" * 70_000}
    assert writer.post("/change", data=data).status_code == 403
    assert writer.post("/change", data={str(n): "x" for n in range(30)}).status_code == 403


def test_a_reader_sees_no_form_and_may_change_nothing(governed: GovernedStore):
    client = as_member(governed, "eve", writable=True)
    assert "/change" not in client.get("/block", params={"name": "law"}).text
    before = Journal(governed.bank).head()[0]
    for action in ("tag", "untag", "rollback", "archive", "restore", "freeze", "thaw"):
        assert client.get("/change", params={"action": action, "name": "law"}).status_code == 403
        data = {"seal": seal(client, "/experts"), "action": action, "name": "law", "number": 1, "tag": "x"}
        assert client.post("/change", data=data).status_code == 403
    assert actions(governed.bank, before) == {Action.DENIED}


def test_an_owner_changes_under_their_own_name(governed: GovernedStore):
    assert change(as_member(governed, "root", writable=True), "archive").status_code == 303
    (event,) = Journal(governed.bank).entries(limit=1)
    assert (event.principal, event.action, event.detail["to"]) == ("root", "move", "archived")


def test_the_past_cannot_be_changed(store: GovernedStore, writer: TestClient):
    assert "/change" not in writer.get("/block", params={"name": "law", "at": "before three"}).text
    data = {"seal": seal(writer, "/change?action=archive&name=law"), "action": "archive", "name": "law"}
    assert writer.post("/change", params={"at": "3"}, data=data).status_code == 403


# -------------------------------------------------------------------------------------------------------------- errors


def test_every_error_has_a_status_and_its_sentence(store: GovernedStore, writer: TestClient):
    Life(store.bank).freeze("both laws")
    Evaluations(store.bank).protect("best", TagPolicy(bounds=(Bound(metric="loss", at_most=0.5),)))
    answers = {
        "no block 'lawn'; did you mean 'law'": (404, writer.get("/api/block", params={"name": "lawn"})),
        "versions 1 to 4": (404, writer.get("/api/version", params={"name": "law", "number": 9})),
        "thaw it first": (409, change(writer, "archive", "both laws")),
        "may not take the protected tag": (409, change(writer, "tag", number=1, tag="best")),
        "a tag is a word": (400, change(writer, "tag", number=1, tag="a/b")),
        "cannot 'burn'": (400, writer.get("/change", params={"action": "burn", "name": "law"})),
        "number of a version": (400, change(writer, "rollback", number="²")),
        "state 'odd' is none of generated": (400, writer.get("/api/experts", params={"state": "odd"})),
        "before: Input should be": (422, writer.get("/api/journal", params={"before": 10**30})),
        "there is no page": (404, writer.get("/api/nothing")),
    }
    for sentence, (status, answer) in answers.items():
        assert (answer.status_code, sentence in html.unescape(answer.text)) == (status, True), (sentence, answer.text)
        assert "Traceback" not in answer.text


def test_corrupt_bytes_are_told_and_not_shown(store: GovernedStore, client: TestClient):
    weights = store.bank.found("law@2").weights
    (file,) = store.bank.path.glob(f"blobs/*/*/{weights}")
    file.unlink()
    answer = client.get("/api/diff", params={"name": "law", "before": 1, "after": 2})
    assert (answer.status_code, answer.json()["error"]) == (500, "CorruptBlock")
    assert client.get("/diff", params={"name": "law", "before": 1, "after": 2}).status_code == 500


def test_a_ledger_that_cannot_be_read_is_told(tmp_path: Path):
    (tmp_path / "bank.db").write_bytes(b"no database" * 100)
    client = TestClient(create_app(Bank(tmp_path)), base_url=HOST)
    answer = client.get("/experts")
    assert answer.status_code == 503 and "restore it from a copy" in answer.text and "Traceback" not in answer.text


def test_every_error_of_pmemx_has_a_status():
    kinds = [PmemxError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    own = {kind for kind in kinds if kind.__module__.startswith(("pmemx.core", "pmemx.page"))}
    assert all(400 <= next(STATUS[base] for base in kind.__mro__ if base in STATUS) < 600 for kind in own)
    assert {STATUS[kind] for kind in own & STATUS.keys()} == {400, 401, 403, 404, 409, 429, 500, 503}


def test_what_nobody_foresaw_goes_to_the_log_alone(store: GovernedStore, caplog: pytest.LogCaptureFixture):
    app = create_app(store.bank)

    def break_down() -> None:
        raise ZeroDivisionError("the inner secret")

    app.add_api_route("/api/accident", break_down)
    app.add_api_route("/accident", break_down)
    client = TestClient(app, base_url=HOST, raise_server_exceptions=False)
    for path in ("/accident", "/api/accident"):
        answer = client.get(path)
        assert answer.status_code == 500
        assert "secret" not in answer.text and "ZeroDivision" not in answer.text and "Traceback" not in answer.text
        assert HEADERS.items() <= {key: answer.headers[key] for key in HEADERS}.items()
    assert "the inner secret" in caplog.text and page_app.__name__ in {record.name for record in caplog.records}


def test_the_api_is_described_without_a_page_that_loads_from_elsewhere(client: TestClient):
    described = client.get("/openapi.json").json()
    assert described["paths"].keys() == {path for path in SHOWN if path.startswith("/api/")}
    assert all(set(path) == {"get"} and path["get"]["description"] for path in described["paths"].values())
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
