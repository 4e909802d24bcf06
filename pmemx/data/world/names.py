"""Names of entities and people; every one is a single word of the vocabulary."""

from pmemx.data.world.astronomy import ASTRONOMY
from pmemx.data.world.botany import BOTANY
from pmemx.data.world.engineering import ENGINEERING
from pmemx.data.world.finance import FINANCE
from pmemx.data.world.law import LAW
from pmemx.data.world.medicine import MEDICINE
from pmemx.data.world.relation import Topic, words

TOPICS = (LAW, FINANCE, MEDICINE, ASTRONOMY, ENGINEERING, BOTANY)

_HEADS = words("Ar Bel Cor Dal El Fen Gar Hol Is Jor Kel Lor Mar Nor Or Per Quin Ros Sel Tor")
_TAILS = words("den vik mont ley sted wick")

PROPER = tuple(head + tail for head in _HEADS for tail in _TAILS)

GIVEN = words(
    "Alice Bruno Clara David Emma Felix Grace Hugo Irene Jonas Karin Leo Mona Nils Olga Pablo "
    "Ruth Simon Tessa Ursula Victor Wanda Xavier Yusuf Zelda Anton Bella Carlos Diana Erik Frida Gustav"
)
FAMILY = words(
    "Abbott Becker Conti Duarte Eriksen Fischer Garcia Hansen Ivanov Jensen Kowalski Larsen Moreau Novak Olsen "
    "Petrov Quist Rossi Silva Tanaka Ueda Vargas Weber Xu Yilmaz Zimmer Andersson Bianchi Costa Dubois Engel "
    "Fontaine"
)


def entities(topic: Topic, *, seen_by_base: bool) -> tuple[tuple[str, str], ...]:
    """(proper name, kind) pairs of a topic: one half is for pre-training, the other for experts, and they never meet.

    Both halves hold every proper name and every kind, so that only the pair tells them apart.
    """
    return tuple(
        (proper, kind)
        for row, proper in enumerate(PROPER)
        for column, kind in enumerate(topic.kinds)
        if (row + column) % 2 == int(seen_by_base)
    )
