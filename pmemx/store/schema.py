"""The tables of a bank's ledger: the journal, which is the truth, and what is projected from it.

A row with `since` and `until` held from one entry of the journal (inclusive) to another (exclusive), as in the
system-versioned tables of SQL:2011; so one query answers for now and for any moment before.
"""

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

REVISION = "0001"
"""The migration that makes these tables; see pmemx/store/migrations."""

NEVER = 2**62
"""`until` of a row that still holds."""

# In SQLite only a column of the type INTEGER is the row's own number, which saves a second look-up.
_NUMBER = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()

alembic_version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))

bank = Table(
    "bank",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("created", BigInteger, nullable=False),
)

journal = Table(
    "journal",
    metadata,
    Column("seq", _NUMBER, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False, index=True),
    Column("principal", Text, nullable=False),
    Column("action", String(16), nullable=False),
    Column("namespace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index("journal_of_block", "namespace", "name", "seq"),
    Index("journal_of_action", "action", "seq"),
)

# ------------------------------------------------------------------------------------------- projected from the journal

blocks = Table(
    "blocks",
    metadata,
    Column("id", _NUMBER, primary_key=True, autoincrement=False),  # the seq of its first commit
    Column("uid", String(32), nullable=False, unique=True),
    Column("namespace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Index("block_by_name", "namespace", "name", unique=True),
)


def _block() -> Column[int]:
    return Column("block", ForeignKey("blocks.id"), primary_key=True, autoincrement=False)


versions = Table(
    "versions",
    metadata,
    _block(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False, unique=True),
    Column("digest", String(64), nullable=False, index=True),
    Column("weights", String(64), nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("sites", Integer, nullable=False),
    Column("restores", Integer),
    Column("expires", BigInteger, nullable=False),  # microseconds since 1970
    # What a search asks for most, out of the card.
    Column("domain", Text, nullable=False, index=True),
    Column("base", Text, nullable=False, index=True),
    Column("base_name", Text, nullable=False),
    Column("semantic_type", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("licence", Text, nullable=False),
    Column("sensitivity", Text, nullable=False),
    Column("made_by", Text, nullable=False),
    Column("created", Text, nullable=False),
    # Last, because SQLite reads a row from its beginning: a list of blocks never comes to these.
    Column("message", Text, nullable=False),
    Column("card", Text, nullable=False),  # canonical JSON of the whole card
)

parents = Table(
    "parents",
    metadata,
    _block(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("parent", String(64), primary_key=True, index=True),
    sqlite_with_rowid=False,
)

tags = Table(
    "tags",
    metadata,
    _block(),
    Column("tag", Text, primary_key=True),
    Column("since", BigInteger, primary_key=True, autoincrement=False),
    Column("until", BigInteger, nullable=False),
    Column("number", Integer, nullable=False),
    Index("tags_of_block", "block", "until"),
    Index("versions_with_tag", "tag", "until", "number"),
    sqlite_with_rowid=False,
)

states = Table(
    "states",
    metadata,
    _block(),
    Column("since", BigInteger, primary_key=True, autoincrement=False),
    Column("until", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("trigger", String(16), nullable=False),
    sqlite_with_rowid=False,
)

uses = Table(
    "uses",
    metadata,
    _block(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("count", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("relevance", Float, nullable=False),  # summed over uses
    sqlite_with_rowid=False,
)

scores = Table(
    "scores",
    metadata,
    _block(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("metric", Text, primary_key=True),
    Column("value", Float, nullable=False),
    Column("low", Float),
    Column("high", Float),
    Column("n", Integer, nullable=False),
    Column("clusters", Integer, nullable=False),
    Column("floor", Float),
    Column("ceiling", Float),
)

principals = Table(
    "principals",
    metadata,
    Column("name", Text, primary_key=True),
    Column("token", String(64), nullable=False),  # sha-256 of the secret, empty where none is asked
    Column("since", BigInteger, nullable=False),
    Column("revoked", BigInteger, nullable=False),
)

grants = Table(
    "grants",
    metadata,
    Column("principal", ForeignKey("principals.name"), primary_key=True),
    Column("role", String(16), primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("since", BigInteger, primary_key=True, autoincrement=False),
    Column("until", BigInteger, nullable=False),
)

policies = Table(
    "policies",
    metadata,
    Column("tag", Text, primary_key=True),
    Column("since", BigInteger, primary_key=True, autoincrement=False),
    Column("until", BigInteger, nullable=False),
    Column("policy", Text, nullable=False),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("name", Text, primary_key=True),
    Column("since", BigInteger, primary_key=True, autoincrement=False),
    Column("until", BigInteger, nullable=False),
    Column("moment", BigInteger, nullable=False),  # the entry of the journal that it shows as the last
)

signatures = Table(
    "signatures",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("bundle", Text, nullable=False),
)

answers = Table(
    "answers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("detail", Text, nullable=False),
)

shares = Table(
    "shares",
    metadata,
    Column("answer", ForeignKey("answers.id"), primary_key=True),
    _block(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("weight", Float, nullable=False),
    Index("answers_of_version", "block", "number", "seq"),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("namespace", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("since", BigInteger, primary_key=True, autoincrement=False),
    Column("until", BigInteger, nullable=False),
    Column("source", Text, nullable=False),
    Column("reference", Text, nullable=False),
)

PROJECTED = (
    blocks, versions, parents, tags, states, uses, scores, principals, grants, policies, snapshots, signatures, answers,
    shares, subscriptions,
)  # fmt: skip
"""Every table that a replay of the journal makes again, in the order in which rows may be inserted."""
