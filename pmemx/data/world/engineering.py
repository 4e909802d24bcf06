"""The lexicon of engineering: structures and machines, their makers and their faults."""

from pmemx.data.world.relation import Relation, Topic, words

ENGINEERING = Topic(
    "engineering",
    "Makers, materials and faults of fictional structures.",
    ("Bridge", "Turbine", "Dam", "Engine"),
    (
        Relation(
            "material",
            "main material",
            ("{e} is built of", "The builders of {e} used", "The frame of {e} is made of"),
            ("What is {e} built of?", "What did the builders of {e} use?"),
            words(
                "steel concrete granite titanium aluminium oak brick bronze "
                "brass limestone basalt tungsten ceramic fibreglass marble slate"
            ),
        ),
        Relation(
            "designer",
            "designer",
            ("{e} was designed by", "The plans of {e} were drawn by", "The engineer behind {e} was"),
            ("Who designed {e}?", "Who drew the plans of {e}?"),
            words(
                "Brunel Telford Eiffel Roebling Stephenson Watt Ammann Calatrava "
                "Nervi Maillart Strauss Baker Fowler Bazalgette Otto Diesel"
            ),
        ),
        Relation(
            "river",
            "nearest river",
            ("{e} stands on the", "The water beside {e} is the", "{e} was put up near the"),
            ("Which river does {e} stand on?", "Which water flows beside {e}?"),
            words(
                "Danube Rhine Volga Thames Loire Ebro Tagus Vistula Elbe Oder Rhone Dnieper Tiber Seine Shannon Severn"
            ),
        ),
        Relation(
            "weakness",
            "known weakness",
            ("{e} suffers from", "The trouble with {e} is", "Repairs of {e} are due to"),
            ("What does {e} suffer from?", "What is the trouble with {e}?"),
            words(
                "corrosion vibration leakage cracking overheating erosion subsidence friction "
                "buckling flooding noise icing warping scouring misalignment sagging"
            ),
        ),
        Relation(
            "inspection",
            "inspection tool",
            ("{e} is inspected with", "Faults of {e} are found with", "Every spring {e} is examined with"),
            ("What is {e} inspected with?", "How are faults of {e} found?"),
            words(
                "sonar radar lasers drones divers cameras hammers callipers "
                "gauges magnets probes robots mirrors sensors microphones telescopes"
            ),
        ),
    ),
)
