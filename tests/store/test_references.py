"""What may be a name, a namespace or a tag, and which version a reference means."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmemx.core.card import BlockCard, Version
from pmemx.core.card_json import card_values
from pmemx.core.errors import ConfigError, PmemxError, UnknownBlock
from pmemx.core.event import Action
from pmemx.store.bank import Bank
from pmemx.store.manifest import Manifest
from pmemx.store.references import Name, check_name, check_namespace, check_tag, looks_like_digest, split_namespace

SLOW_FOLDER = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# S3 of the fault tests: what looks like a path, a device, an option, a digest or an index is only a name.
NAMES = [
    "law", "../x", "../../etc/passwd", "/abs", "a/b", "a/b\\c", "C:\\bank", "CON", "nul.txt", ".", "..", "0", "mlp",
    "-rf", "--help", "=cmd|' /C calc'!A0", "<script>alert(1)</script>", "'; DROP TABLE journal; --", "%s{}$HOME`id`",
    "👩‍🔬 ☃", "naïve", "名前", "law ", "a@b.c", "law@1", "@", "@latest", "a" * 11, "a" * 65, "x" * 300, "team:legal", "user:ann",
    "shared", "Shared/law", "team:/x", "TEAM:legal/x", "user:ann b/x", "https://host/x",
]  # fmt: skip

UNSHOWABLE = {
    "": "visible text",
    "  ": "visible text",
    "\u2003": "visible text",
    "a\nb": "visible text",
    "a\tb": "visible text",
    "a\x00b": "visible text",
    "\x1b[31mred": "visible text",
    "a\x7f": "visible text",
    "a\u0085b": "visible text",
    "a\u2028b": "visible text",
    "abc\u202egnp": "visible text",
    "a\u2066b": "visible text",
    "\ud800": "visible text",
    "x" * 301: "at most 300 characters, got 301",
    "e\u0301": "composed form",
    "\u212b": "composed form",  # the Angstrom sign, which is an A with a ring
    "team:legal/contracts": "begins like a namespace",
    "user:ann/x": "begins like a namespace",
    "shared/law": "begins like a namespace",
    "a" * 12: "taken for the digest",
    "0" * 64: "taken for the digest",
}


def commit(bank: Bank, name: str = "law", content: bytes = b"weights") -> Version:
    """A version whose weights are any bytes: a bank without tensors does not look into them."""
    card = BlockCard(name, "domain", "b" * 64, recipe={"content": content.hex()})
    digest = bank.objects.put(content)
    return bank.commit(Manifest(card, (), digest, len(content)), content)


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank(tmp_path / "bank", principal="ann")


@pytest.mark.parametrize("name", NAMES)
def test_any_visible_name_is_only_a_name(name: str, bank: Bank, tmp_path: Path) -> None:
    made = commit(bank, name)
    assert bank.names() == (name,)
    assert bank.find(name) == made
    assert bank.find(f"{name}@1") == made
    assert bank.find(f"shared/{name}") == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bank"]
    assert {path.name for path in (tmp_path / "bank").iterdir()} <= {"bank.db", "bank.db-wal", "bank.db-shm", "blobs"}
    files = [path.name for path in (tmp_path / "bank" / "blobs").rglob("*") if path.is_file()]
    assert len(files) == 2
    assert all(len(file) == 64 and int(file, 16) for file in files)


@pytest.mark.parametrize("name", UNSHOWABLE)
def test_a_name_that_cannot_be_shown_or_told_apart_is_refused_and_leaves_no_trace(name: str, bank: Bank) -> None:
    with pytest.raises(ConfigError, match=UNSHOWABLE[name]):
        bank.commit(Manifest(BlockCard(name, "", ""), (), "0" * 64, 0), b"")
    assert not Path(bank.path).exists()


def test_twins_in_unicode_cannot_both_be_names_and_twins_in_case_are_two_blocks(bank: Bank) -> None:
    commit(bank, "é")
    with pytest.raises(UnknownBlock, match=r"did you mean 'é'|the bank holds 1 blocks"):
        bank.find("e\u0301")
    for name in ("Law", "law", "LAW"):
        commit(bank, name, name.encode())
    assert bank.names() == ("LAW", "Law", "law", "é")
    assert len({bank.find(name).digest for name in bank.names()}) == 4


@given(st.text(min_size=1, max_size=30))
@SLOW_FOLDER
def test_any_text_is_a_name_or_is_refused(tmp_path: Path, name: str) -> None:
    bank = Bank(tmp_path / "bank", principal="ann")
    try:
        made = commit(bank, name)
    except ConfigError:
        assert name not in bank.names()
        with pytest.raises(PmemxError):
            bank.find(name)
    else:
        assert bank.find(name) == made
        assert name in bank.names()
        assert unicodedata.normalize("NFC", name) == name


@pytest.mark.parametrize(
    "namespace",
    ["shared", "user:ann", "team:legal", "user:ann@example.org", "team:a.b+c-d_e", "user:josé", "team:" + "x" * 64],
)
def test_namespaces_that_are_some(namespace: str) -> None:
    check_namespace(namespace)
    assert split_namespace(f"{namespace}/law") == Name(namespace, "law")
    assert split_namespace(f"{namespace}/a/b@2") == Name(namespace, "a/b@2")


@pytest.mark.parametrize(
    "namespace",
    ["", "Shared", "shared ", "user:", "team:a b", "user:ann/x", "user:ann\n", "group:x", "user:jose\u0301", "team:" + "x" * 65,
     "shared/user:ann", ":ann", "user:ann\x00", "user:<b>", "team:*", "*"],
)  # fmt: skip
def test_namespaces_that_are_none_are_refused_before_a_bank_is_opened(namespace: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a namespace is 'shared', 'user:<word>' or 'team:<word>'"):
        check_namespace(namespace)
    with pytest.raises(ConfigError, match="a namespace is"):
        Bank(tmp_path / "bank", namespace=namespace)
    assert list(tmp_path.iterdir()) == []


def test_a_name_without_a_namespace_is_of_the_banks_own(bank: Bank, tmp_path: Path) -> None:
    team = Bank(tmp_path / "bank", namespace="team:legal", principal="ann")
    shared, own = commit(bank, "law", b"1"), commit(team, "law", b"2")
    assert (shared.namespace, own.namespace) == ("shared", "team:legal")
    assert bank.names() == ("law", "team:legal/law")
    assert team.names() == ("law", "shared/law")
    for view, home in ((bank, shared), (team, own)):
        assert view.find("law") == view.find("law@1") == view.find("law@latest") == home
        assert view.find("shared/law") == view.find("shared/law@1") == view.find(shared.digest) == shared
        assert view.find("team:legal/law") == view.find("team:legal/law@latest") == view.find(own.digest) == own
        for version in (shared, own):
            assert view.find(view.reference(version)) == version
    assert [bank.reference(version) for version in (shared, own)] == ["law@1", "team:legal/law@1"]
    assert [team.reference(version) for version in (shared, own)] == ["shared/law@1", "law@1"]
    with pytest.raises(UnknownBlock, match="no block 'team:tax/law'; did you mean 'team:legal/law'"):
        bank.find("team:tax/law")


def test_inside_a_transaction_of_another_namespace_a_bank_still_speaks_of_its_own(bank: Bank, tmp_path: Path) -> None:
    team = Bank(tmp_path / "bank", namespace="team:legal", principal="ann")
    shared, own = commit(bank, "law", b"1"), commit(team, "law", b"2")
    with bank.transaction():
        assert (bank.find("law"), team.find("law")) == (shared, own)
        team.tag("law", "prod")
        team.rollback("law", 1)
    assert (bank.tags("law"), team.tags("law")) == ({}, {"prod": 1})


def test_names_are_sorted_across_namespaces(bank: Bank, tmp_path: Path) -> None:
    for namespace in ("user:zoe", "team:legal", "shared"):
        for name in ("zebra", "ant"):
            commit(Bank(tmp_path / "bank", namespace=namespace, principal="ann"), name, namespace.encode())
    assert bank.names() == (
        "ant", "team:legal/ant", "team:legal/zebra", "user:zoe/ant", "user:zoe/zebra", "zebra",
    )  # fmt: skip


def test_references_by_hand(bank: Bank) -> None:
    first, second = commit(bank, content=b"1"), commit(bank, content=b"2")
    assert bank.tag("law@1", "stable") == first
    for reference in (
        "law",
        "law@2",
        "law@latest",
        "shared/law",
        second.digest,
        second.digest[:12],
        second.digest[:63],
    ):
        assert bank.find(reference) == second
    for reference in ("law@1", "law@stable", "shared/law@stable", first.digest):
        assert bank.find(reference) == first
    assert bank.tags("law") == {"stable": 1}
    bank.tag(second.digest, "stable")
    assert bank.tags("law") == {"stable": 2}
    bank.untag("law", "stable")
    bank.untag("law", "stable")
    assert bank.tags("law") == {}


def test_a_name_that_looks_like_a_reference_is_a_name_first(bank: Bank) -> None:
    law, odd = commit(bank, "law"), commit(bank, "law@1")
    assert bank.find("law") == law
    assert bank.find("law@1") == bank.find("law@1@1") == odd


def test_no_block_takes_the_digest_of_another_for_its_name(bank: Bank) -> None:
    law = commit(bank, "law")
    for name in (law.digest, law.digest[:12]):
        with pytest.raises(ConfigError, match="could be taken for the digest"):
            commit(bank, name, b"other")
        assert bank.find(name) == law


def test_a_version_is_read_and_rolled_back_to_although_a_block_is_called_like_its_reference(bank: Bank) -> None:
    first = commit(bank, "law", b"1")
    commit(bank, "law@1", b"odd")
    assert bank.read("law")[2] == b"1"
    commit(bank, "law", b"2")
    rolled = bank.rollback("law", 1)
    assert (rolled.name, rolled.number, rolled.digest, rolled.restores) == ("law", 3, first.digest, 1)
    assert len(bank.history("law@1")) == 1


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("lwa", "no block 'lwa'; did you mean 'law'"),
        ("law@7", "versions 1 to 1 and tags best, but no '7'"),
        ("law@0", "no '0'"),
        ("law@-1", "no '-1'"),
        ("law@" + "9" * 400, "no '999"),
        ("law@bset", "no 'bset'"),
        ("law@", "no ''"),
        ("nothing@1", "no block 'nothing'; the bank holds 1 blocks"),
        ("team:x/law@1", "no block 'team:x/law'"),
        ("shared/nothing", "no block 'nothing'"),
        ("0123456789ab", "no version begins with digest 0123456789ab"),
        ("0123", "no block '0123'"),
        ("F" * 64, "no block 'FFFF"),
        ("", "no block ''"),
        ("@", "no block ''"),
        ("/", "no block '/'"),
        ("law\x00", "no block"),
    ],
)
def test_an_unknown_reference_says_what_there_is(reference: str, hint: str, bank: Bank) -> None:
    commit(bank)
    bank.tag("law", "best")
    for look_up in (bank.find, bank.read, bank.manifest):
        with pytest.raises(UnknownBlock, match=hint):
            look_up(reference)


def test_half_a_character_is_refused_wherever_text_goes_in(bank: Bank) -> None:
    commit(bank)
    for refused in (
        lambda: bank.find("\ud800"),
        lambda: bank.history("law\udcff"),
        lambda: bank.tag("law", "prod", reason="\udcff"),
        lambda: Bank(bank.path, principal="\udcff").tag("law", "prod"),
    ):
        with pytest.raises(ConfigError, match=r"'\\ud...' is half a character"):
            refused()
    assert bank.tags("law") == {}


def test_a_beginning_of_a_digest_must_have_twelve_digits_and_mean_one(bank: Bank) -> None:
    twins = ["a" * 12 + letter * 52 for letter in "bc"]
    for name, digest in zip(("one", "two"), twins, strict=True):
        with bank.transaction() as now:
            card = card_values(BlockCard(name, "", ""))
            detail = {"uid": name, "number": 1, "digest": digest, "weights": digest, "size": 0, "rank": 1, "sites": 1}
            now.append(Action.COMMIT, Name("shared", name), detail | {"restores": None, "message": "", "card": card})
    with pytest.raises(UnknownBlock, match="2 versions begin with digest aaaaaaaaaaaa; give a name, or all 64 digits"):
        bank.find("a" * 12)
    assert [bank.find(digest[:13]).name for digest in twins] == ["one", "two"]
    with pytest.raises(UnknownBlock, match="no block 'aaaaaaaaaaa'"):
        bank.find("a" * 11)
    assert [looks_like_digest(text) for text in ("a" * 11, "a" * 12, "a" * 64, "a" * 65, "A" * 64, "g" * 64)] == [
        False, True, True, False, False, False,
    ]  # fmt: skip


def test_of_versions_with_one_digest_the_newest_is_meant(bank: Bank) -> None:
    first = commit(bank, content=b"1")
    commit(bank, content=b"2")
    rolled = bank.rollback("law", 1)
    assert bank.find(first.digest) == rolled
    assert bank.at(1).find(first.digest) == first


@pytest.mark.parametrize("tag", ["prod", "v1.0", "☃", "-f", "1a", "best so far", "0x1"])
def test_tags_that_are_some(tag: str, bank: Bank) -> None:
    made = commit(bank)
    bank.tag("law", tag)
    assert bank.tags("law") == {tag: 1}
    assert bank.find(f"law@{tag}") == made


@pytest.mark.parametrize(
    "tag", ["", " ", "3", "٣", "latest", "a@b", "a/b", "a\nb", "a\x00", "\u202ea", "\ud800", "e\u0301", "x" * 301]
)
def test_a_tag_that_could_be_mistaken_is_refused(tag: str, bank: Bank) -> None:
    commit(bank)
    with pytest.raises(ConfigError, match="a tag is a word"):
        bank.tag("law", tag)
    with pytest.raises(ConfigError, match="a tag is a word"):
        check_tag(tag)
    assert bank.tags("law") == {}


@given(st.text(max_size=20), st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_a_legal_name_in_a_legal_namespace_is_split_where_it_was_joined(word: str, name: str) -> None:
    for namespace in ("shared", f"user:{word}", f"team:{word}"):
        try:
            check_namespace(namespace)
            check_name(name)
        except ConfigError:
            continue
        assert split_namespace(str(Name(namespace, name))) == Name(namespace, name)
        assert split_namespace(name) == Name("shared", name)
