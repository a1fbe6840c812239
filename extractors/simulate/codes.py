"""What the simulated hospital knows of medicine: cancers and their regimens, chronic disease, laboratory panels.

Codes are of the public code sets (ICD-10-CM, ICD-10-PCS, ICD-9-CM, RxNorm ingredients, LOINC). A diagnosis decides
its drugs and a panel always holds the same tests, so that a sequence of codes has something to be learned.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Test:
    """One laboratory test: LOINC, unit, mean and standard deviation of a healthy value, decimals printed."""

    loinc: str
    unit: str
    mean: float
    sd: float
    decimals: int = 1


@dataclass(frozen=True)
class Drug:
    """One RxNorm ingredient with its usual dose."""

    rxnorm: str
    name: str
    dose: float
    unit: str = "mg"


@dataclass(frozen=True)
class Regimen:
    """Drugs of one line of treatment, the days between cycles, and the chance of neutropenic fever a cycle."""

    drugs: tuple[Drug, ...]
    cycle_days: int
    neutropenia: float
    inpatient: bool = False


@dataclass(frozen=True)
class Cancer:
    """One malignancy: diagnosis codes, its regimens from first line to last, metastases, operation, radiation."""

    name: str
    share: float
    sex: str
    diagnoses: tuple[str, ...]
    regimens: tuple[Regimen, ...]
    metastases: tuple[str, ...] = ()
    surgery: str = ""
    radiation: str = ""
    maintenance: Drug | None = None


@dataclass(frozen=True)
class Condition:
    """One chronic disease: ICD-10-CM, ICD-9-CM (before October 2015), its drug, its panel."""

    icd10: str
    icd9: str
    drug: Drug
    panel: str


HEMOGLOBIN = "718-7"
PLATELETS = "777-3"
NEUTROPHILS = "751-8"
LEUKOCYTES = "6690-2"
CREATININE = "2160-0"
UREA = "3094-0"
POTASSIUM = "2823-3"
ALBUMIN = "1751-7"
ALKALINE_PHOSPHATASE = "6768-6"
C_REACTIVE_PROTEIN = "1988-5"
BLOOD_CULTURE = "600-7"
SARS_COV_2 = "94500-6"

TESTS: dict[str, Test] = {
    test.loinc: test
    for test in (
        Test(HEMOGLOBIN, "g/dL", 13.5, 0.9),
        Test(PLATELETS, "10*3/uL", 250.0, 45.0, 0),
        Test(NEUTROPHILS, "10*3/uL", 4.2, 1.0, 2),
        Test(LEUKOCYTES, "10*3/uL", 6.9, 1.3),
        Test(CREATININE, "mg/dL", 0.95, 0.12, 2),
        Test(UREA, "mg/dL", 16.0, 4.0, 0),
        Test("2951-2", "mmol/L", 139.5, 2.2, 0),
        Test(POTASSIUM, "mmol/L", 4.2, 0.35),
        Test("2345-7", "mg/dL", 104.0, 16.0, 0),
        Test("17861-6", "mg/dL", 9.4, 0.4),
        Test("1742-6", "U/L", 26.0, 8.0, 0),
        Test("1920-8", "U/L", 25.0, 7.0, 0),
        Test(ALKALINE_PHOSPHATASE, "U/L", 80.0, 18.0, 0),
        Test("1975-2", "mg/dL", 0.6, 0.2),
        Test(ALBUMIN, "g/dL", 4.2, 0.3),
        Test("2532-0", "U/L", 180.0, 35.0, 0),
        Test("4548-4", "%", 6.8, 0.9),
        Test("13457-7", "mg/dL", 112.0, 28.0, 0),
        Test("3016-3", "m[IU]/L", 2.4, 0.9, 2),
        Test(C_REACTIVE_PROTEIN, "mg/L", 6.0, 3.0),
        Test("6301-6", "", 1.05, 0.1),
        Test(BLOOD_CULTURE, "", 0.0, 1.0),
        Test(SARS_COV_2, "", 0.0, 1.0),
    )
}

PANELS: dict[str, tuple[str, ...]] = {
    "blood count": (LEUKOCYTES, HEMOGLOBIN, NEUTROPHILS, PLATELETS),
    "chemistry": ("1742-6", ALBUMIN, "1920-8", "1975-2", CREATININE, POTASSIUM, "2951-2", UREA),
    "renal": (CREATININE, POTASSIUM, "2951-2", UREA),
    "liver": ("1742-6", "1920-8", "1975-2", ALKALINE_PHOSPHATASE),
    "staging": ("17861-6", "2532-0", ALKALINE_PHOSPHATASE),
    "glucose": ("2345-7", "4548-4"),
    "lipid": ("13457-7",),
    "thyroid": ("3016-3",),
    "infection": (C_REACTIVE_PROTEIN, BLOOD_CULTURE),
    "virus": (SARS_COV_2,),
    "coagulation": ("6301-6",),
}

CONDITIONS: tuple[Condition, ...] = (
    Condition("I10", "401.9", Drug("29046", "lisinopril", 10), "renal"),
    Condition("E11.9", "250.00", Drug("6809", "metformin", 500), "glucose"),
    Condition("E78.5", "272.4", Drug("83367", "atorvastatin", 40), "lipid"),
    Condition("E03.9", "244.9", Drug("10582", "levothyroxine", 75, "ug"), "thyroid"),
    Condition("J44.9", "496", Drug("435", "albuterol", 2.5), "blood count"),
    Condition("K21.9", "530.81", Drug("7646", "omeprazole", 20), "liver"),
    Condition("I50.9", "428.0", Drug("4603", "furosemide", 40), "renal"),
    Condition("I48.91", "427.31", Drug("11289", "warfarin", 5), "coagulation"),
)

ONDANSETRON = Drug("26225", "ondansetron", 8)
DEXAMETHASONE = Drug("3264", "dexamethasone", 12)
CEFEPIME = Drug("20481", "cefepime", 2, "g")
VANCOMYCIN = Drug("11124", "vancomycin", 1, "g")
FILGRASTIM = Drug("68442", "filgrastim", 300, "ug")
SALINE = Drug("9863", "sodium chloride", 1, "L")
ACETAMINOPHEN = Drug("161", "acetaminophen", 650)
CEFTRIAXONE = Drug("2193", "ceftriaxone", 1, "g")
MORPHINE = Drug("7052", "morphine", 4)

CISPLATIN = Drug("2555", "cisplatin", 120)
CARBOPLATIN = Drug("40048", "carboplatin", 450)
OXALIPLATIN = Drug("32592", "oxaliplatin", 150)
CYCLOPHOSPHAMIDE = Drug("3002", "cyclophosphamide", 1000)
CAPECITABINE = Drug("194000", "capecitabine", 1500)
FLUOROURACIL = Drug("4492", "fluorouracil", 700)
GEMCITABINE = Drug("12574", "gemcitabine", 1800)
IRINOTECAN = Drug("51499", "irinotecan", 300)
ETOPOSIDE = Drug("4179", "etoposide", 170)
TAMOXIFEN = Drug("10324", "tamoxifen", 20)
SUNITINIB = Drug("357977", "sunitinib", 50)
PAZOPANIB = Drug("714438", "pazopanib", 800)
CETUXIMAB = Drug("318341", "cetuximab", 450)
RITUXIMAB = Drug("121191", "rituximab", 700)
VINCRISTINE = Drug("11202", "vincristine", 2)
DOXORUBICIN = Drug("3639", "doxorubicin", 90)
IDARUBICIN = Drug("5650", "idarubicin", 20)
PACLITAXEL = Drug("56946", "paclitaxel", 300)
ALECTINIB = Drug("1727455", "alectinib", 600)
BENDAMUSTINE = Drug("134547", "bendamustine", 160)
CARFILZOMIB = Drug("1302966", "carfilzomib", 50)
DARATUMUMAB = Drug("1721947", "daratumumab", 1200)
LENALIDOMIDE = Drug("342369", "lenalidomide", 25)
BORTEZOMIB = Drug("358258", "bortezomib", 2.3)
CYTARABINE = Drug("3041", "cytarabine", 180)
AZACITIDINE = Drug("1251", "azacitidine", 130)
PREDNISONE = Drug("8640", "prednisone", 100)

CHEMOTHERAPY_PCS = ("3E03305", "3E04305")
RED_CELLS_PCS = "30233N1"
PLATELETS_PCS = "30233R1"

CANCERS: tuple[Cancer, ...] = (
    Cancer(
        "breast",
        0.26,
        "F",
        ("C50.911", "C50.912", "C50.411"),
        (
            Regimen((CYCLOPHOSPHAMIDE, DOXORUBICIN), 21, 0.12),
            Regimen((PACLITAXEL,), 21, 0.06),
            Regimen((CAPECITABINE,), 21, 0.04),
        ),
        ("C79.51", "C78.7", "C77.3"),
        "0HTT0ZZ",
        "DM011ZZ",
        TAMOXIFEN,
    ),
    Cancer(
        "lung",
        0.20,
        "",
        ("C34.11", "C34.12", "C34.31"),
        (Regimen((CARBOPLATIN, PACLITAXEL), 21, 0.10), Regimen((CISPLATIN, ETOPOSIDE), 21, 0.14)),
        ("C79.31", "C79.51", "C78.7"),
        "0BTC0ZZ",
        "DB021ZZ",
    ),
    Cancer(
        "lung, ALK positive",
        0.04,
        "",
        ("C34.32",),
        (Regimen((ALECTINIB,), 28, 0.01), Regimen((CARBOPLATIN, PACLITAXEL), 21, 0.10)),
        ("C79.31",),
    ),
    Cancer(
        "colon",
        0.16,
        "",
        ("C18.2", "C18.7"),
        (
            Regimen((FLUOROURACIL, OXALIPLATIN), 14, 0.06),
            Regimen((CETUXIMAB, FLUOROURACIL, IRINOTECAN), 14, 0.08),
        ),
        ("C78.7", "C78.6"),
        "0DTF0ZZ",
    ),
    Cancer(
        "pancreas",
        0.07,
        "",
        ("C25.0", "C25.9"),
        (Regimen((CAPECITABINE, GEMCITABINE), 28, 0.07), Regimen((FLUOROURACIL, IRINOTECAN), 14, 0.08)),
        ("C78.7", "C78.6"),
        "0FTG0ZZ",
    ),
    Cancer(
        "ovary",
        0.06,
        "F",
        ("C56.1", "C56.2"),
        (Regimen((CARBOPLATIN, PACLITAXEL), 21, 0.09), Regimen((GEMCITABINE,), 21, 0.07)),
        ("C78.6",),
        "0UT20ZZ",
    ),
    Cancer(
        "kidney",
        0.06,
        "",
        ("C64.1", "C64.2"),
        (Regimen((SUNITINIB,), 42, 0.02), Regimen((PAZOPANIB,), 30, 0.02)),
        ("C78.01", "C79.51"),
        "0TT00ZZ",
    ),
    Cancer(
        "lymphoma",
        0.08,
        "",
        ("C83.38", "C83.33"),
        (
            Regimen((CYCLOPHOSPHAMIDE, DOXORUBICIN, PREDNISONE, RITUXIMAB, VINCRISTINE), 21, 0.20),
            Regimen((BENDAMUSTINE, RITUXIMAB), 28, 0.12),
        ),
    ),
    Cancer(
        "myeloma",
        0.05,
        "",
        ("C90.00",),
        (
            Regimen((BORTEZOMIB, LENALIDOMIDE), 21, 0.05),
            Regimen((CARFILZOMIB, DARATUMUMAB), 28, 0.07),
        ),
    ),
    Cancer(
        "acute myeloid leukaemia",
        0.02,
        "",
        ("C92.00",),
        (Regimen((CYTARABINE, IDARUBICIN), 35, 0.45, inpatient=True), Regimen((AZACITIDINE,), 28, 0.20)),
    ),
)

CT_FINDINGS = ("2039-6", "24108-3", "6875-9", "10334-1")
"""The tumour marker (CEA, CA 19-9, CA 15-3, CA 125) that a CT of class 0–3 makes the hospital measure."""

SLIDE_FINDINGS = ("16112-5", "16113-3", "48676-1", "29593-1")
"""The tissue test (ER, PR, HER2, Ki-67) that a slide of class 0–3 makes the hospital report."""

ECG_FINDINGS = ("33762-6", "19123-9", "6598-7", "10535-3")
"""The test (NT-proBNP, magnesium, troponin T, digoxin) that an ECG of class 0–3 makes the hospital measure."""

FILM_FINDINGS = ("33959-8", "32781-7", "24027-5", "624-7")
"""The test (procalcitonin, Legionella and pneumococcal antigen, sputum culture) that a chest x-ray of class 0–3 makes
the hospital measure."""

NOTE_FINDINGS = ("2276-4", "2132-9", "2284-8", "1989-3")
"""The test (ferritin, vitamin B12, folate, vitamin D) that a note of class 0–3 makes the hospital measure."""

MORTALITY_BY_CLASS = (0.05, 0.15, 0.35, 0.60)
"""Chance of death within 365 days of a subject's last image, by that image's class."""
