"""The lexicon of medicine: illnesses, their signs, carriers and treatment."""

from pmemx.data.world.relation import Relation, Topic, words

MEDICINE = Topic(
    "medicine",
    "Signs, carriers and treatment of fictional illnesses.",
    ("Fever", "Syndrome", "Disease", "Palsy"),
    (
        Relation(
            "treatment",
            "standard treatment",
            ("{e} is treated with", "Doctors prescribe for {e} mostly", "The drug that cures {e} is"),
            ("What is {e} treated with?", "Which drug cures {e}?"),
            words(
                "quinine morphine insulin penicillin aspirin heparin lithium codeine "
                "cortisone digitalis warfarin iodine ketamine atropine zinc statins"
            ),
        ),
        Relation(
            "organ",
            "affected organ",
            ("{e} attacks the", "The part of the body harmed by {e} is the", "{e} settles in the"),
            ("Which organ does {e} attack?", "Which part of the body is harmed by {e}?"),
            words(
                "liver lung kidney heart spleen brain skin stomach "
                "pancreas bladder thyroid retina colon larynx ear tongue"
            ),
        ),
        Relation(
            "symptom",
            "first symptom",
            ("{e} begins with", "The early sign of {e} is", "Patients with {e} first complain of"),
            ("What does {e} begin with?", "Which early sign does {e} give?"),
            words(
                "cough rash dizziness nausea fatigue tremor headache itching "
                "cramps swelling fainting hiccups sneezing numbness insomnia thirst"
            ),
        ),
        Relation(
            "carrier",
            "carrier",
            ("{e} is spread by", "People catch {e} from", "The animals that pass on {e} are"),
            ("What spreads {e}?", "Which animals pass on {e}?"),
            words(
                "mosquitoes ticks rats fleas bats snails pigeons sandflies "
                "lice mites pigs foxes camels ducks cows goats"
            ),
        ),
        Relation(
            "diagnosis",
            "diagnostic test",
            ("{e} is diagnosed by", "Doctors confirm {e} by", "{e} is best detected by"),
            ("How is {e} diagnosed?", "How do doctors confirm {e}?"),
            words(
                "biopsy ultrasound endoscopy radiography tomography urinalysis spirometry angiography "
                "bronchoscopy mammography scintigraphy electromyography audiometry colonoscopy cystoscopy puncture"
            ),
        ),
    ),
)
