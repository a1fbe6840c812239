"""Labels of chest x-rays as docs/xrays.md maps them: four states, and a study is one, whatever its views."""

import re
from pathlib import Path

import yaml

from extractors.source import Source
from tests.support.raw.raw_tables import convert

PAGE = Path(__file__).parents[3] / "docs" / "xrays.md"
LABELS = "subject_id,study_id,Edema,Pneumonia\n7,50,1.0,\n7,51,-1.0,0.0\n8,52,,\n"
STUDIES = "dicom_id,subject_id,study_id,StudyDate\na,7,50,21800506\nb,7,50,21800506\nc,7,51,21810607\nd,8,52,21900101\n"


def test_blank_is_not_mentioned_and_uncertain_is_no_number_between(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(name: mimic-cxr-labels.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    source = Source.model_validate(yaml.safe_load(block))
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "mimic-cxr-2.0.0-metadata.csv").write_text(STUDIES)
    (raw / "mimic-cxr-2.0.0-chexpert.csv").write_text(LABELS)
    events, _ = convert(tmp_path, source, "mimic-cxr-2.0.0-chexpert", raw / "mimic-cxr-2.0.0-chexpert.csv")
    found = events.select("code", "numeric_value").sort("code", "numeric_value").rows()
    assert found == [("CHEXPERT/Edema", -1.0), ("CHEXPERT/Edema", 1.0), ("CHEXPERT/Pneumonia", 0.0)]
