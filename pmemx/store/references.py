"""The grammar of references: [namespace/]name[@which], where which is a number, a tag or "latest", or a digest."""

import re
import unicodedata
from dataclasses import dataclass

from pmemx.core.errors import ConfigError

SHARED = "shared"
LATEST = "latest"
_NAMESPACE = re.compile(r"shared|(?:user|team):[\w.@+-]{1,64}")
_OBEYED = frozenset({"Cc", "Cs", "Zl", "Zp"})
_BIDIRECTIONAL_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_DIGEST = re.compile(r"[0-9a-f]{12,64}")
MAX_NAME = 300


@dataclass(frozen=True)
class Name:
    """A block's full name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def split_namespace(text: str, home: str = SHARED) -> Name:
    """The namespace in front of a name, `home` where there is none: "team:legal/contracts", "shared/law", "law"."""
    namespace, slash, rest = text.partition("/")
    if slash and _NAMESPACE.fullmatch(namespace):
        return Name(namespace, rest)
    return Name(home, text)


def looks_like_digest(text: str) -> bool:
    """At least twelve hexadecimal digits."""
    return bool(_DIGEST.fullmatch(text))


def check_namespace(namespace: str) -> None:
    """Raises ConfigError for anything but "shared", "user:<word>" and "team:<word>"."""
    if not _NAMESPACE.fullmatch(namespace):
        raise ConfigError(
            f"a namespace is {SHARED!r}, 'user:<word>' or 'team:<word>', got {namespace!r}; words hold letters, digits and .@+-_"
        )


def check_name(name: str) -> None:
    """Raises ConfigError for a name that cannot be shown or be told from a namespace or a digest."""
    if not name.strip() or not printable(name):
        raise ConfigError(f"the name of a block must be visible text on one line, got {name!r}; rename it")
    if len(name) > MAX_NAME:
        raise ConfigError(f"the name of a block has at most {MAX_NAME} characters, got {len(name)}; shorten it")
    if unicodedata.normalize("NFC", name) != name:
        raise ConfigError(
            f"the name {name!r} is not in Unicode's composed form (NFC), so that two names could look the same; normalise it"
        )
    if split_namespace(name).name != name:
        raise ConfigError(f"the name {name!r} begins like a namespace; give the namespace apart, and rename it")
    if looks_like_digest(name):
        raise ConfigError(f"the name {name!r} could be taken for the digest of a version; rename it")


def check_tag(tag: str) -> None:
    """Raises ConfigError for a tag that could be taken for something else."""
    visible = bool(tag.strip()) and printable(tag) and unicodedata.normalize("NFC", tag) == tag
    if not visible or len(tag) > MAX_NAME or "@" in tag or "/" in tag or tag.isdecimal() or tag == LATEST:
        raise ConfigError(
            f"a tag is a word other than {LATEST!r} without '@' and '/', in Unicode's composed form (NFC) and of at most "
            f"{MAX_NAME} characters, got {tag[:MAX_NAME]!r}; choose another"
        )


def printable(text: str) -> bool:
    """Whether a text can be shown on one line, in its own direction."""
    return not any(map(hidden, text))


def hidden(character: str) -> bool:
    """Whether a character is obeyed rather than shown: a control (ANSI escapes among them), half a character, a separator
    of lines, or a turn of the direction in which the rest is read."""
    # Not str.isprintable, which refuses the joiners inside emoji.
    return unicodedata.category(character) in _OBEYED or character in _BIDIRECTIONAL_CONTROLS
