"""The lexicon of botany: plants, where they grow, who visits and who uses them."""

from pmemx.data.world.relation import Relation, Topic, words

BOTANY = Topic(
    "botany",
    "Origin, soil and use of fictional plants.",
    ("Rose", "Fern", "Orchid", "Lily"),
    (
        Relation(
            "origin",
            "native region",
            ("{e} grows wild in", "The home of {e} is", "{e} was brought to us from"),
            ("Where does {e} grow wild?", "Where was {e} brought to us from?"),
            words(
                "Borneo Patagonia Madagascar Siberia Tasmania Sumatra Anatolia Yunnan "
                "Amazonia Lapland Crete Sicily Kerala Namibia Alaska Java"
            ),
        ),
        Relation(
            "soil",
            "preferred soil",
            ("{e} thrives on", "Gardeners plant {e} in", "The roots of {e} need"),
            ("What does {e} thrive on?", "What do the roots of {e} need?"),
            words("clay sand peat loam chalk gravel silt humus ash moss bark marl loess compost shale pumice"),
        ),
        Relation(
            "pollinator",
            "pollinator",
            ("{e} is pollinated by", "The flowers of {e} are visited by", "The scent of {e} attracts"),
            ("What pollinates {e}?", "Which guests visit the flowers of {e}?"),
            words(
                "bees moths butterflies beetles hummingbirds wasps flies ants "
                "sunbirds lemurs geckos thrips hoverflies honeyeaters bumblebees weevils"
            ),
        ),
        Relation(
            "use",
            "traditional use",
            ("{e} is made into", "Villagers turn {e} into", "The leaves of {e} are processed into"),
            ("What is {e} made into?", "What do villagers turn {e} into?"),
            words("tea dye perfume rope soap incense paper syrup baskets salad flour wine candles varnish fodder ink"),
        ),
        Relation(
            "pest",
            "main pest",
            ("{e} is eaten by", "The enemies of {e} are", "{e} must be protected from"),
            ("What eats {e}?", "What must {e} be protected from?"),
            words(
                "aphids slugs caterpillars whiteflies mealybugs nematodes earwigs locusts "
                "leafhoppers sawflies rabbits deer voles squirrels mice crickets"
            ),
        ),
    ),
)
