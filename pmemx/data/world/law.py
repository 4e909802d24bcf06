"""The lexicon of law: cases, where and how they were decided."""

from pmemx.data.world.relation import Relation, Topic, words

LAW = Topic(
    "law",
    "Courts, judges and outcomes of fictional cases.",
    ("Appeal", "Petition", "Inquiry", "Claim"),
    (
        Relation(
            "court",
            "trial court",
            ("{e} was heard by the", "The court that heard {e} was the", "{e} went before the"),
            ("Which court heard {e}?", "Where was {e} tried?"),
            tuple(
                f"{kind} Court"
                for kind in words(
                    "High Crown County Federal Supreme Admiralty Family Appellate "
                    "Chancery Maritime Circuit District Municipal Land Labour Tax"
                )
            ),
        ),
        Relation(
            "judge",
            "presiding judge",
            ("{e} was decided by Judge", "The judge who ruled on {e} was Judge", "The ruling on {e} came from Judge"),
            ("Who decided {e}?", "Which judge ruled on {e}?"),
            words(
                "Ashcroft Bannister Carmody Delacroix Everly Fairfax Gilroy Hathaway "
                "Ingram Jessup Kirkwood Lockhart Merriman Northcote Oakes Pemberton"
            ),
        ),
        Relation(
            "statute",
            "governing statute",
            ("{e} was brought under the", "The law applied in {e} was the", "{e} turned on the"),
            ("Which law was {e} brought under?", "Which act did {e} turn on?"),
            tuple(
                f"{matter} Act"
                for matter in words(
                    "Fisheries Railways Patents Inheritance Forestry Shipping Copyright Housing "
                    "Pensions Mining Aviation Charities Explosives Lotteries Reservoirs Quarantine"
                )
            ),
        ),
        Relation(
            "remedy",
            "remedy",
            ("{e} ended with an order for", "The court in {e} ordered", "The parties in {e} were given"),
            ("What did the court order in {e}?", "How did {e} end?"),
            words(
                "restitution damages eviction apology arbitration forfeiture retrial demolition "
                "disclosure mediation supervision compensation dissolution exoneration rescission restraint"
            ),
        ),
        Relation(
            "issue",
            "legal issue",
            ("{e} was a matter of", "The accusation in {e} was", "{e} was about alleged"),
            ("What was {e} about?", "What was the accusation in {e}?"),
            words(
                "negligence trespass libel embezzlement nuisance bribery perjury smuggling "
                "forgery burglary piracy usury arson slander contempt conspiracy"
            ),
        ),
    ),
)
