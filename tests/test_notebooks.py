"""The notebooks run from top to bottom in this Python, show what they promise, and are stored
without outputs. They are executed as Jupyter would, in a kernel; a cell with smaller settings
follows the one tagged `parameters`."""
from __future__ import annotations

import ast
import base64
import io
import json
import re
from collections import Counter
from math import log
from pathlib import Path

import matplotlib.image
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from tiny import ROOT, only_run

from slm.prepare import open_prepared
from slm.spec import load_spec, parse_arguments

FOLDER = ROOT / "analysis"
ANALYSIS = ("compare", "scaling", "samples", "transfer")
NAMES = ("walkthrough", *ANALYSIS)
SMALL = {
    "compare": "",
    "scaling": "BOOTSTRAP = 200",
    "samples": 'WHERE, STORIES, TRAIN = "n_embd >= 96", 300, 10_000',
    "transfer": ""}
FIGURES = {"compare": 5, "scaling": 8, "samples": 6, "transfer": 1}
LONGEST = 15


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def code(name: str) -> list[str]:
    return [cell.source for cell in read(name).cells if cell.cell_type == "code"]


def without_magic(source: str) -> str:
    return re.sub(r"^%.*$", "", source, flags=re.M)


def with_parameters(name: str, parameters: str) -> list[nbformat.NotebookNode]:
    """The cells, and after the one tagged `parameters` another with these."""
    cells = read(name).cells
    for cell in cells:
        cell.id = f"{name}-{cell.id}"                       # unique where notebooks share a kernel
    at = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    assert len(at) == 1
    injected = nbformat.v4.new_code_cell(parameters, id=f"{name}-injected")
    return [*cells[:at[0] + 1], injected, *cells[at[0] + 1:]]


def execute(cells: list[nbformat.NotebookNode], folder: Path, home: Path) -> None:
    """Run cells in a kernel of this Python that begins in `folder`, and fill in their outputs.
    home: stands for what a user has set up for Jupyter and IPython."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
            patch.setenv(variable, str(home / variable))
        for variable in ("JUPYTER_PATH", "MPLBACKEND", "PYTHONPATH"):
            patch.delenv(variable, raising=False)
        notebook = nbformat.v4.new_notebook(cells=cells)
        NotebookClient(notebook, kernel_name="python3", timeout=250, allow_errors=True,
                       resources={"metadata": {"path": str(folder)}}).execute()


def outputs(cells: list[nbformat.NotebookNode]) -> dict[str, nbformat.NotebookNode]:
    """Code cells by their id, none of which may have failed."""
    cells = [cell for cell in cells if cell.cell_type == "code"]
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", f"{cell.source}\n{output.ename}: {output.evalue}"
    return {cell.id.partition("-")[2]: cell for cell in cells}


@pytest.fixture(scope="module")
def of_the_study(tmp_path_factory):
    """The analysis notebooks on the study's records, one after the other in one kernel whose names
    are wiped in between: what they import is loaded once."""
    notebooks = {name: with_parameters(name, SMALL[name]) for name in ANALYSIS}
    everything = [cell for cells in notebooks.values()
                  for cell in (nbformat.v4.new_code_cell("%reset -f"), *cells)]
    execute(everything, ROOT, tmp_path_factory.mktemp("jupyter"))
    return notebooks


def figures(cells: dict) -> list[np.ndarray]:
    """Every picture that was shown, (height, width, channels)."""
    shown = [output.data["image/png"] for cell in cells.values() for output in cell.outputs
             if "image/png" in output.get("data", {})]
    return [matplotlib.image.imread(io.BytesIO(base64.b64decode(png))) for png in shown]


def printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream"
                   and output.name == "stdout")


def unigram_level(prepared) -> float:
    """Loss of somebody who knows how often each token occurs in the training text, nats/token."""
    seen, n = Counter(prepared.train.tolist()), prepared.meta["n_vocab"]
    total = len(prepared.train) + n
    return -sum(log((seen[i] + 1) / total) for i in prepared.val.tolist()) / len(prepared.val)


def test_walkthrough_teaches_a_model_more_than_frequencies(tmp_path):
    tiny = ["--model.n_layer=1", "--model.n_head=4", "--model.n_embd=64", "--model.block_size=64",
            "--data.tokenizer=bpe:512", "--data.fables.stories=1000", "--data.fables.facts=50",
            "--data.fables.val_stories=40", "--train.tokens=40_000", "--optim.lr=5e-3",
            "--track.wandb=disabled", f"--track.dir={tmp_path}/runs", f"--data.cache={tmp_path}/d"]
    notebook = with_parameters("walkthrough", f"OVERRIDES = {tiny!r}")
    execute(notebook, FOLDER, tmp_path)
    cells = outputs(notebook)
    unigram = unigram_level(open_prepared(next((tmp_path / "d").glob("fables-*"))))
    summary = json.loads((only_run(tmp_path) / "summary.json").read_text())
    assert summary["val_floor"] < summary["val_loss"] < unigram - 0.2
    assert f"unigram {unigram:.3f}" in printed(cells["unigram"])
    assert f"validation loss {summary['val_loss']:.3f}" in printed(cells["curves"])
    assert "the device is cpu" in printed(cells["no-gpu"])
    assert printed(cells["write"]).startswith("Once upon a time")
    assert len(figures(cells)) == 3 and all(np.ptp(f) > 0.5 for f in figures(cells))


def test_walkthrough_takes_other_stories_by_one_line(tmp_path, monkeypatch, capsys):
    """The cells one after the other in this process, without a kernel: stories of unknown entropy
    in the layout of TinyStories."""
    import matplotlib

    from slm.corpora.fables import Fables
    fables = Fables(seed=1, stories=300, val_stories=30)
    for split, file in (("train", "train.txt"), ("val", "validation.txt")):
        text = "\n<|endoftext|>\n".join(fables.documents(split))
        (tmp_path / file).write_text(text)
    tiny = [f"--data.path={tmp_path}", "--data.tokenizer=bpe:300", "--model.n_layer=1",
            "--model.n_embd=16", "--model.block_size=32", "--train.steps=4",
            "--train.batch_tokens=256", "--train.micro_batch=8", "--sample.max_new_tokens=5",
            "--track.wandb=disabled", f"--track.dir={tmp_path}/runs", f"--data.cache={tmp_path}/d"]
    monkeypatch.chdir(FOLDER)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    parameters, *rest = code("walkthrough")
    names: dict = {}
    with matplotlib.rc_context():
        matplotlib.use("Agg")
        for source in (parameters, f"SPEC, OVERRIDES = 'experiments/tinystories.yaml', {tiny!r}",
                       *rest):
            exec(without_magic(source), names)
        matplotlib.pyplot.close("all")
    assert names["corpus"].name == "tinystories" and "entropy" not in capsys.readouterr().out
    assert set(names["levels"]) == {"uniform guess, ln V", "knows the frequencies"}


@pytest.mark.parametrize("name", ANALYSIS)
def test_analysis_runs_on_the_records_of_the_study(name, of_the_study):
    cells = outputs(of_the_study[name])
    assert len(figures(cells)) >= FIGURES[name]
    assert all(np.ptp(figure) > 0.5 for figure in figures(cells))


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_stored_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, cell.id


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_thin(name):
    """Cells fit a glance; functions live in modules, where they are tested."""
    for source in code(name):
        assert len(source.splitlines()) <= LONGEST, source
        assert max(map(len, source.splitlines())) <= 100, source
        tree = ast.parse(without_magic(source))
        assert not [n for n in ast.walk(tree)
                    if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Lambda))], source


def test_settings_that_the_walkthrough_suggests_exist():
    """Every --key=value in its text and exercises is one that the spec takes."""
    text = "\n".join(cell.source for cell in read("walkthrough").cells)
    found = re.findall(r"--[a-z]+\.[\w.]+=[\w.:-]+", text)
    assert len(found) > 8
    for option in found:
        load_spec(*parse_arguments([str(ROOT / "experiments" / "base.yaml"), option]))
