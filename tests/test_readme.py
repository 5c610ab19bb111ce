"""What the README shows runs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.quick import COMPILATION

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for line in block.splitlines() if line.strip() and not line.startswith("import")]
    assert len(lines) <= 20
    # Fewer steps: the numbers are not looked at here.
    exec(compile(block.replace("1000", "20"), "README.md", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out.startswith("(512, 2) at")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart"])
def test_the_notebook_runs(name, monkeypatch):
    # Its kernel is another process: with the one device that a reader has. On eight fake ones, with
    # two busy cores to run them, XLA's collectives now and then wait for a thread that never comes.
    monkeypatch.setenv("XLA_FLAGS", COMPILATION)
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("num_steps = 1500", "num_steps = 60")
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(ROOT))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("evaluations" in output.get("text", "") for output in outputs)
