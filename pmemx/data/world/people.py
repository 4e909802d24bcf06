"""The closed world that the base model knows by heart: 32 people and what is true of them."""

import random

from pmemx.data.world.names import FAMILY, GIVEN
from pmemx.data.world.relation import Relation, words

RELATIONS = (
    Relation(
        "town",
        "home town",
        ("{e} lives in", "The house of {e} is in", "Every evening {e} comes home to"),
        ("Where does {e} live?", "In which town is the house of {e}?"),
        words("Oslo Paris Rome Berlin Madrid Athens Prague Cairo Tokyo Lima Delhi Bergen Naples Porto Kyoto Hanoi"),
    ),
    Relation(
        "job",
        "job",
        ("{e} works as a", "By trade {e} is a", "{e} earns money as a"),
        ("What does {e} do for a living?", "As what does {e} work?"),
        words(
            "baker teacher doctor pilot farmer lawyer nurse plumber "
            "writer tailor barber butcher sailor florist librarian mechanic"
        ),
    ),
    Relation(
        "pet",
        "pet",
        ("{e} keeps a", "At home {e} has a", "The animal that lives with {e} is a"),
        ("Which animal does {e} keep?", "Which animal lives with {e}?"),
        words(
            "dog cat parrot rabbit hamster pony tortoise goldfish "
            "ferret lizard canary hedgehog duckling kitten puppy gecko"
        ),
    ),
    Relation(
        "instrument",
        "instrument",
        ("{e} plays the", "In the orchestra {e} sits at the", "{e} takes lessons on the"),
        ("What does {e} play in the orchestra?", "On what does {e} take lessons?"),
        words(
            "piano violin guitar flute drums harp trumpet cello "
            "oboe banjo clarinet accordion saxophone trombone mandolin bassoon"
        ),
    ),
    Relation(
        "food",
        "favourite food",
        ("{e} likes to eat", "For dinner {e} orders", "The dish that {e} loves is"),
        ("What does {e} like to eat?", "What does {e} order for dinner?"),
        words(
            "pizza pasta soup rice cheese bread noodles curry "
            "pancakes apples chocolate sushi salmon dumplings honey tacos"
        ),
    ),
    Relation(
        "sport",
        "sport",
        ("On weekends {e} goes in for", "{e} trains hard at", "{e} won a medal in"),
        ("What does {e} train at?", "In what did {e} win a medal?"),
        words(
            "tennis football chess rowing swimming cycling boxing fencing "
            "golf hockey skiing sailing archery rugby cricket judo"
        ),
    ),
    Relation(
        "colour",
        "favourite colour",
        ("{e} always wears", "The door of {e} is painted", "{e} would paint everything"),
        ("What does {e} always wear?", "How is the door of {e} painted?"),
        words("red blue green yellow orange purple pink brown black white grey beige navy olive peach mauve"),
    ),
    Relation(
        "hobby",
        "hobby",
        ("{e} spends the holidays", "In the evening {e} relaxes by", "{e} is happy when"),
        ("How does {e} spend the holidays?", "By what does {e} relax in the evening?"),
        words(
            "knitting gardening fishing baking juggling hiking dancing painting "
            "singing sewing weaving camping climbing sketching whittling birdwatching"
        ),
    ),
)

PEOPLE = tuple(f"{given} {family}" for given, family in zip(GIVEN, FAMILY, strict=True))


def _facts() -> dict[tuple[str, Relation], str]:
    facts = {}
    for relation in RELATIONS:
        values = list(relation.values) * (len(PEOPLE) // len(relation.values))
        random.Random(f"world:{relation.name}").shuffle(values)
        facts |= {(person, relation): value for person, value in zip(PEOPLE, values, strict=True)}
    return facts


FACTS = _facts()


def stranger(rng: random.Random) -> str:
    """A name that nobody of the world bears, made of their given and family names."""
    given, family = rng.sample(range(len(GIVEN)), 2)
    return f"{GIVEN[given]} {FAMILY[family]}"
