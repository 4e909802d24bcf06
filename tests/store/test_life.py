"""A block's life: every legal move is journalled with its trigger, every other one is refused, and time is a clock's."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmemx.core.card_json import card_values
from pmemx.core.errors import AccessDenied, ConfigError, IllegalTransition, UnknownBlock
from pmemx.core.event import Action
from pmemx.core.lifecycle import State, Trigger
from pmemx.store import catalogue
from pmemx.store.collector import Collector
from pmemx.store.governed import GovernedStore
from pmemx.store.journal import Journal
from pmemx.store.ledger import readable_time
from pmemx.store.life import Keeping, Life, standing
from pmemx.store.members import Members, Role
from pmemx.store.references import Name
from tests.store.banks import Hands, block, fill, opened, put

DAY = 86_400.0


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def store(tmp_path: Path, clock: Hands) -> GovernedStore:
    return opened(tmp_path, clock)


@pytest.fixture
def life(store: GovernedStore) -> Life:
    return Life(store.bank)


def test_a_whole_life_is_told_by_the_journal(store: GovernedStore, life: Life) -> None:
    put(store, "law")
    life.use("law")
    life.archive("law", reason="season over")
    life.restore("law")
    life.freeze("law")
    life.thaw("law")
    life.archive("law")
    life.expire("law")
    put(store, "law", 2.0)
    moves = Journal(store.bank).entries("law", action=Action.MOVE)[::-1]
    assert [(m.detail["from"], m.detail["trigger"], m.detail["to"]) for m in moves] == [
        ("generated", "use", "activated"),
        ("activated", "archive", "archived"),
        ("archived", "restore", "activated"),
        ("activated", "freeze", "frozen"),
        ("frozen", "thaw", "activated"),
        ("activated", "archive", "archived"),
        ("archived", "expire", "expired"),
        ("expired", "commit", "generated"),
    ]
    assert moves[1].detail["reason"] == "season over"
    assert (store.find("law").number, fill(store, "law")) == (2, 2.0)
    assert store.verify() == ()


def test_what_is_archived_or_merged_is_out_of_selection_but_readable(store: GovernedStore, life: Life) -> None:
    first = put(store, "one")
    put(store, "two")
    put(store, "both", 3.0, parents=(first.digest, store.find("two").digest))
    life.merge(["one", "two"], "both")
    life.archive("two")
    assert store.names() == ("both",)
    assert fill(store, "one") == fill(store, "two") == 1.0
    life.restore("one")
    assert store.names() == ("both", "one")
    assert life.state("one") is State.GENERATED  # it was never used


def test_merging_asks_for_lineage(store: GovernedStore, life: Life) -> None:
    put(store, "one")
    put(store, "other")
    with pytest.raises(IllegalTransition, match="names no version of shared/one among its parents"):
        life.merge(["one"], "other")
    assert life.state("one") is State.GENERATED


def test_an_expired_block_is_a_tombstone(store: GovernedStore, life: Life, clock: Hands) -> None:
    digest = put(store, "law").digest
    life.archive("law")
    clock.turn(days=1)
    life.expire("law")
    for reference in ("law", "law@1", digest):
        with pytest.raises(UnknownBlock, match=r"law expired at 2026-01-02.* by root"):
            store.get(reference)
    with pytest.raises(IllegalTransition):
        life.restore("law")
    assert life.state("law") is State.EXPIRED
    assert store.names() == ()


def test_a_frozen_block_refuses_update_tag_rollback_merge_deletion_decay_and_ttl(
    store: GovernedStore, life: Life, clock: Hands
) -> None:
    put(store, "law", 1.0, ttl=DAY, half_life=DAY)
    put(store, "law", 2.0, ttl=DAY, half_life=DAY)
    life.freeze("law")
    child = put(store, "child", 3.0, parents=(store.find("law").digest,))
    head = Journal(store.bank).head()
    for attempt in (
        lambda: put(store, "law", 3.0),
        lambda: store.tag("law@1", "stable"),
        lambda: store.bank.untag("law", "stable"),
        lambda: store.rollback("law", 1),
        lambda: life.merge(["law"], child.digest),
        lambda: life.archive("law"),
        lambda: life.expire("law"),
        lambda: life.restore("law"),
        lambda: life.freeze("law"),
    ):
        with pytest.raises(IllegalTransition):
            attempt()
    assert Journal(store.bank).head() == head
    clock.turn(days=400)
    assert life.sweep(Keeping(archive_below=0.5, expire_archived_after=0)) == ()
    assert "law" in store.names()
    assert fill(store, "law") == 2.0
    assert len(store.history("law")) == 2
    life.use("law")  # being used changes nothing about it
    assert life.state("law") is State.FROZEN


def test_the_ttl_hides_a_block_at_once_and_a_sweep_buries_it(store: GovernedStore, life: Life, clock: Hands) -> None:
    put(store, "brief", ttl=60.0)
    put(store, "lasting")
    clock.turn(seconds=59)
    assert store.names() == ("brief", "lasting")
    assert life.sweep(Keeping()) == ()
    clock.turn(seconds=1)
    assert store.names() == ("lasting",)
    name = Name("shared", "brief")
    first = life.sweep(Keeping(grace=DAY), dry_run=True)
    assert life.state("brief") is State.GENERATED
    assert life.sweep(Keeping(grace=DAY)) == first
    assert [(m.name, m.after, m.trigger) for m in first] == [(name, State.ARCHIVED, Trigger.TTL)]
    assert life.sweep(Keeping(grace=DAY)) == ()
    clock.turn(days=1)
    assert [m.after for m in life.sweep(Keeping(grace=DAY))] == [State.EXPIRED]
    assert life.sweep(Keeping(grace=DAY)) == ()


def test_a_sweep_without_grace_archives_and_expires_in_two_entries(
    store: GovernedStore, life: Life, clock: Hands
) -> None:
    put(store, "brief", ttl=60.0)
    clock.turn(seconds=60)
    assert [m.after for m in life.sweep(Keeping())] == [State.ARCHIVED, State.EXPIRED]
    assert [e.detail["trigger"] for e in Journal(store.bank).entries("brief", action=Action.MOVE)] == ["expire", "ttl"]


def test_what_a_person_archived_expires_only_when_told(store: GovernedStore, life: Life, clock: Hands) -> None:
    put(store, "law")
    life.archive("law")
    clock.turn(days=1000)
    assert life.sweep(Keeping()) == ()
    assert [m.after for m in life.sweep(Keeping(expire_archived_after=999 * DAY))] == [State.EXPIRED]


def test_a_new_version_begins_a_new_ttl(store: GovernedStore, clock: Hands) -> None:
    put(store, "brief", 1.0, ttl=60.0)
    clock.turn(seconds=50)
    put(store, "brief", 2.0, ttl=60.0)
    clock.turn(seconds=50)
    assert store.names() == ("brief",)


def test_disuse_archives_by_standing(store: GovernedStore, life: Life, clock: Hands) -> None:
    put(store, "used", half_life=DAY)
    put(store, "idle", half_life=DAY)
    put(store, "dear", half_life=DAY, priority=7)
    put(store, "lasting")
    clock.turn(days=1)
    life.use("used", count=3)
    assert {name: life.standing(name) for name in store.names()} == {
        "used": 3.0,
        "idle": 0.5,
        "dear": 4.0,
        "lasting": 1.0,
    }
    assert [m.name.name for m in life.sweep(Keeping(archive_below=0.6))] == ["idle"]
    clock.turn(days=2)
    assert life.standing("used") == 0.75
    life.use("used")
    assert life.standing("used") == 1 + 2.321928094887362


@given(
    st.integers(0, 50), st.integers(0, 10**6), st.floats(1, 1e8), st.floats(0, 1e9), st.floats(1, 2),
)  # fmt: skip
def test_standing_falls_with_disuse_and_rises_with_use(
    priority: int, uses: int, half_life: float, idle: float, factor: float
) -> None:
    def at(*, priority: int = priority, uses: int = uses, idle: float = idle) -> float:
        return standing(priority=priority, uses=uses, half_life=half_life, idle=idle)

    assert at(idle=idle * factor) <= at() <= at(uses=uses + 1)
    assert at() <= at(priority=priority + 1)
    assert at(idle=idle + half_life) == pytest.approx(at() / 2, rel=1e-9, abs=1e-300)


def test_use_is_counted_by_version_and_needs_execute(store: GovernedStore, life: Life) -> None:
    put(store, "law", 1.0)
    put(store, "law", 2.0)
    life.use("law@1", relevance=0.25)
    life.use("law@1", count=3, relevance=0.75)
    with store.bank.ledger.reading() as now:
        block_key = catalogue.block_of(now, Name("shared", "law"))
        ((number, (count, _, relevance)),) = catalogue.usage(now, block_key).items()
    assert (number, count, relevance) == (1, 4, 0.625)
    Members(store.bank).enrol("root", role=Role.OWNER)
    Members(store.bank).enrol("eve", role=Role.READER, scope="shared")
    eve = replace(store.bank, principal="eve")
    assert eve.find("law").number == 2
    with pytest.raises(AccessDenied, match="execute"):
        Life(eve).use("law")


@pytest.mark.parametrize("values", [{"archive_below": -1.0}, {"grace": float("nan")}, {"expire_archived_after": -1.0}])
def test_keeping_refuses_nonsense(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Keeping(**values)


def test_a_restored_block_of_the_past_is_the_same_block(store: GovernedStore, life: Life) -> None:
    put(store, "law")
    uid = store.bank.found("law").block
    life.archive("law")
    put(store, "law", 2.0)
    assert life.state("law") is State.GENERATED
    assert store.bank.found("law").block == uid
    assert block("law").card.name == "law"


def test_a_ledger_that_holds_a_time_beyond_all_calendars_still_lists(store: GovernedStore) -> None:
    put(store, "law")
    values = card_values(store.find("law").card) | {"ttl": 1e12}
    detail = {"uid": "u", "number": 1, "digest": "d" * 64, "weights": "w" * 64, "size": 0, "rank": 1, "sites": 1}
    with store.bank.transaction() as now:
        now.append(Action.COMMIT, Name("shared", "old"), detail | {"restores": None, "message": "", "card": values})
        lines = {line.name: line for line in catalogue.listing(now)}
    assert readable_time(lines["old"].expires) == "9999-12-31T23:59:59+00:00"
    assert readable_time(-(2**62)) == "0001-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("count", "relevance"),
    [(10, 1e308), (1, -1e308), (1, -0.5), (1, float("nan")), (1, float("inf")), (1, 1.1e6), (0, 1.0), (2**31, 1.0), (2**70, 1.0)],
)  # fmt: skip
def test_a_use_that_no_sum_could_hold_is_refused(
    store: GovernedStore, life: Life, count: int, relevance: float
) -> None:
    put(store, "law")
    with pytest.raises(ConfigError):
        life.use("law", count=count, relevance=relevance)
    assert life.state("law") is State.GENERATED


def test_the_largest_use_is_kept_and_verifies(store: GovernedStore, life: Life) -> None:
    put(store, "law")
    for _ in range(3):
        life.use("law", count=2**31 - 1, relevance=1e6)
    assert store.verify() == ()


def test_a_former_life_does_not_come_back(store: GovernedStore, life: Life) -> None:
    digest = put(store, "law", 1.0).digest
    store.tag("law", "stable")
    life.archive("law")
    head = Journal(store.bank).head()[0]
    life.expire("law")
    assert store.bank.history("law")[0].digest == digest
    put(store, "law", 2.0)
    former = f"belongs to a life that expired at .*entry {head + 2}, by root"
    for attempt in (
        lambda: store.get("law@1"),
        lambda: store.get(digest),
        lambda: store.rollback("law", 1),
        lambda: store.tag("law@1", "prod"),
    ):
        with pytest.raises(UnknownBlock, match=former):
            attempt()
    with pytest.raises(UnknownBlock, match="no 'stable'"):
        store.get("law@stable")
    assert store.tags("law") == {}
    past = store.bank.at(head)
    assert (past.find("law@stable").number, past.find("law@1").digest) == (1, digest)
    put(store, "law", 1.0)  # the same bytes again are of the new life
    assert store.find(digest).number == 3
    assert store.verify() == ()


def test_the_collector_takes_the_bytes_of_a_former_life_and_the_bank_stays_sound(
    store: GovernedStore, life: Life
) -> None:
    put(store, "law", 1.0)
    put(store, "law", 2.0)
    life.archive("law")
    life.expire("law")
    put(store, "law", 2.0)
    taken = Collector(store.bank).collect(dry_run=False)
    former = store.bank.at(2).found("law@1")
    assert {item.name for item in taken} == {former.version.digest, former.weights}
    assert fill(store, "law") == 2.0
    assert store.verify() == ()


def test_what_is_out_of_selection_is_not_frozen_into_it(store: GovernedStore, life: Life) -> None:
    put(store, "law")
    put(store, "both", 2.0, parents=(store.find("law").digest,))
    life.merge(["law"], "both")
    with pytest.raises(IllegalTransition, match="freeze leads from generated or activated to frozen"):
        life.freeze("law")
    life.archive("law")
    with pytest.raises(IllegalTransition, match="freeze leads from generated or activated to frozen"):
        life.freeze("law")
    assert store.names() == ("both",)


def test_a_dry_sweep_of_the_past_goes_by_the_archive_of_then(store: GovernedStore, life: Life, clock: Hands) -> None:
    put(store, "law")
    life.archive("law")
    clock.turn(days=10)
    put(store, "other")
    moment = Journal(store.bank).head()[0]
    clock.turn(days=1)
    life.restore("law")
    life.archive("law")
    past = Life(store.bank.at(moment))
    assert [moved.after for moved in past.sweep(Keeping(expire_archived_after=9 * DAY), dry_run=True)] == [
        State.EXPIRED
    ]
    assert past.sweep(Keeping(expire_archived_after=11 * DAY), dry_run=True) == ()
