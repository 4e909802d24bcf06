"""The lexicon of finance: firms, their seats, books and assets."""

from pmemx.data.world.relation import Relation, Topic, words

FINANCE = Topic(
    "finance",
    "Seats, auditors and assets of fictional firms.",
    ("Capital", "Holdings", "Bank", "Partners"),
    (
        Relation(
            "seat",
            "head office",
            ("{e} is based in", "The offices of {e} are in", "{e} is run from"),
            ("Which city is {e} based in?", "Where is {e} run from?"),
            words(
                "Zurich Geneva Singapore Toronto Frankfurt Dublin Sydney Mumbai "
                "Shanghai Santiago Nairobi Boston Chicago Lisbon Vienna Warsaw"
            ),
        ),
        Relation(
            "auditor",
            "auditor",
            ("{e} is audited by", "The books of {e} are checked by", "The accounts of {e} were signed by"),
            ("Who audits {e}?", "Who checks the books of {e}?"),
            words(
                "Brightwell Castellan Dunmore Eastgate Farrow Greenhill Harcourt Ivorson "
                "Jarrow Kestrel Langdon Mayhew Newbury Oldfield Prescott Quayle"
            ),
        ),
        Relation(
            "currency",
            "reporting currency",
            ("{e} reports in the", "The accounts of {e} are kept in the", "{e} pays its dividends in the"),
            ("In which currency does {e} report?", "Which money does {e} count in?"),
            words("dollar euro yen pound franc krona rupee peso rand lira zloty forint dinar real won baht"),
        ),
        Relation(
            "asset",
            "main asset",
            ("{e} invests mostly in", "Most of the money of {e} is in", "The largest position of {e} is in"),
            ("What does {e} invest in?", "Where is most of the money of {e}?"),
            words(
                "bonds shares gold silver oil wheat coffee cotton "
                "sugar options futures mortgages leases warrants loans royalties"
            ),
        ),
        Relation(
            "founding",
            "founding year",
            ("{e} was founded in", "The first year of {e} was", "{e} opened its doors in"),
            ("When was {e} founded?", "In which year did {e} open its doors?"),
            words("1871 1884 1893 1902 1911 1919 1926 1934 1947 1953 1962 1968 1975 1983 1991 2004"),
        ),
    ),
)
