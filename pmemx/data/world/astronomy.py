"""The lexicon of astronomy: objects of the sky and who looked at them."""

from pmemx.data.world.relation import Relation, Topic, words

ASTRONOMY = Topic(
    "astronomy",
    "Place, discoverer and make-up of fictional objects of the sky.",
    ("Nebula", "Comet", "Cluster", "Galaxy"),
    (
        Relation(
            "constellation",
            "host constellation",
            ("{e} lies in", "The stars around {e} form", "{e} is seen in the direction of"),
            ("Which constellation does {e} lie in?", "In which direction is {e} seen?"),
            words(
                "Orion Lyra Cygnus Draco Aquila Perseus Cassiopeia Pegasus "
                "Andromeda Hydra Corvus Lupus Phoenix Vela Auriga Cetus"
            ),
        ),
        Relation(
            "discoverer",
            "discoverer",
            ("{e} was discovered by", "The first to see {e} was", "{e} was first described by"),
            ("Who discovered {e}?", "Who was the first to see {e}?"),
            words(
                "Messier Herschel Hubble Kepler Galileo Huygens Cassini Halley "
                "Lowell Tombaugh Leavitt Cannon Payne Rubin Zwicky Oort"
            ),
        ),
        Relation(
            "observatory",
            "observing station",
            ("{e} is watched from", "The best images of {e} come from", "The telescope that follows {e} is at"),
            ("Where is {e} watched from?", "Where do the best images of {e} come from?"),
            words(
                "Palomar Paranal Arecibo Greenwich Pulkovo Yerkes Lick Effelsberg "
                "Parkes Atacama Teide Haleakala Meudon Uraniborg Potsdam Jodrell"
            ),
        ),
        Relation(
            "element",
            "dominant element",
            ("{e} consists mostly of", "The spectrum of {e} shows mainly", "The gas that fills {e} is mainly"),
            ("What does {e} consist of?", "What does the spectrum of {e} show?"),
            words(
                "hydrogen helium oxygen nitrogen carbon neon argon sulphur "
                "sodium silicon iron calcium magnesium nickel krypton xenon"
            ),
        ),
        Relation(
            "hue",
            "visible hue",
            ("{e} glows in", "On photographs {e} looks", "The light of {e} is"),
            ("In which hue does {e} glow?", "How does {e} look on photographs?"),
            words(
                "crimson scarlet amber turquoise violet indigo magenta emerald "
                "ivory azure ochre maroon teal lilac cobalt copper"
            ),
        ),
    ),
)
