"""Every notebook runs from top to bottom, and the tour shows what it says."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parents[1]}}
    ).execute()
    if path.stem == "01_tour":
        text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
        sheet = re.search(r"with the sheet\s+([\d.]+)", text)
        assert sheet is not None and float(sheet[1]) > 0.95
        law = re.search(r"^law \{'law': ([\d.]+), 'finance': ([\d.]+)\}", text, re.M)
        assert law is not None and float(law[1]) > 0.7 and float(law[2]) < 0.5
