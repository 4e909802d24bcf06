"""A gate is one file and one YAML, as the README shows it: nothing else is edited, and everything knows it."""

import re

from tests.end_to_end.readme import Reader, blocks, checkout


def test_one_file_and_one_yaml_make_a_gate(tmp_path):
    files = [block for block in blocks() if block.file]
    assert [block.file for block in files] == ["pmemx/gate/mine.py", "conf/gate/mine.yaml"]
    reader = Reader(checkout(tmp_path / "checkout"), {})
    try:
        for block in files:
            reader.run(block)
        assert "The mean embedding of the prompt decides." in reader.shell("pmemx list gate")
        covered = reader.shell("python -m pytest -q tests/contract/test_gate_contract.py -k mine")
        output = reader.shell("pmemx run gate=mine gate.sharpness=3 scale=smoke")
    finally:
        reader.close()
    passed = re.search(r"(\d+) passed", covered)
    assert passed is not None and int(passed[1]) >= 10
    assert "Train gate gate: 3/3" in output and "report:" in output
