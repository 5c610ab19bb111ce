"""Tests that the example of the README and the notebook run."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.quick import COMPILATION

ROOT = Path(__file__).parents[1]


def blocks():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def num_lines(block):
    """Number of lines of code except imports."""
    lines = [line for line in block.splitlines() if line.strip()]
    return sum(not line.startswith(("import", "from")) for line in lines)


@pytest.mark.slow
def test_readme_example_trains_and_samples_a_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = blocks()[0]
    assert num_lines(block) <= 10
    # Fewer training steps and examples suffice, because the test does not check the numbers.
    block = block.replace("num_steps=1000", "num_steps=20").replace("8192", "512")
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102
    output = capsys.readouterr().out
    assert re.match(r"\(512, 2\) at \d+ evaluations\n\[[-\d. \n]+\]\n$", output), output


@pytest.mark.slow
def test_readme_example_trains_in_a_loop(capsys):
    block = blocks()[1]
    assert num_lines(block) <= 20
    exec(compile(block.replace("1000", "20"), "README.md", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out.startswith("(512, 2) at")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart"])
def test_notebook_runs(name, monkeypatch):
    # The kernel runs in another process and uses one device. With eight fake devices on two busy
    # cores, collectives of XLA occasionally hang.
    monkeypatch.setenv("XLA_FLAGS", COMPILATION)
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("num_steps = 1500", "num_steps = 60")
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(ROOT))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("evaluations" in output.get("text", "") for output in outputs)
