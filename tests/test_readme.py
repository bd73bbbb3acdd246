"""What the README tells people to type works. Training commands get a horizon of two steps."""
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from tiny import ROOT, environment

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.S | re.M)
COMMANDS = [line.split("  #")[0].strip() for language, block in BLOCKS if not language
            for line in block.splitlines() if line.strip()]
SHORT = ["--train.steps=2", "--model.n_layer=1", "--data.fables.stories=200",
         "--data.fables.val_stories=10", "--sample.max_new_tokens=3"]
# Where a command needs what this machine may lack, how it is tried instead.
NEEDS = {"make": "the Makefile's own targets are what runs this test",
         "wandb": "a W&B account (tests/test_sweep_wandb.py runs these against a stand-in)",
         "agents": "a W&B account (tests/test_sweep_wandb.py)",
         "wandb:ENTITY/PROJECT": "a W&B account (tests/test_runs.py)",
         "analysis.studies": "test_study.py, test_zipf.py and test_studies.py, which are longer"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of what a command reads, so that nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("run.py", "experiments", "sweeps", "slm", "analysis"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    return folder


def test_the_set_up_is_two_commands():
    assert COMMANDS[:2] == ["make run", "make test"]
    assert {"run:", "test:"} <= {line.split(" ")[0] for line in (ROOT / "Makefile").open()}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python ")])
def test_a_command_of_the_readme_runs(command, clone):
    words = shlex.split(command)[1:]
    if any(word in NEEDS for word in words):
        pytest.skip(NEEDS[next(word for word in words if word in NEEDS)])
    if words[:2] == ["-m", "slm.generate"]:
        run = next((clone / "runs").glob("base-*"), None) or first_run(clone)
        words = [str(run) if word == "runs/<run>" else word for word in words]
    elif words[0] == "run.py" and "tinystories" in command:
        words.append("--plan")  # the whole is trained on the real sample in test_real_stories.py
    elif words[0] == "run.py" and "--help" not in words:
        words += SHORT
    elif words[1] in ("analysis.predict", "analysis.report"):  # of the study's records, or a few
        few = sorted((clone / "analysis" / "studies" / "fables" / "runs").glob("n_embd48*"))[:4]
        few = ["analysis/studies/fables/runs"] if words[1] == "analysis.predict" else map(str, few)
        words = [w for word in words for w in (few if word == "runs/" else [word])]
        words = [w.replace("modern", "study-heldout") for w in words]
    elif words[:3] == ["-m", "slm.sweep", "run"]:
        file = clone / words[3]
        text = file.read_text().replace("500_000", "2_048")
        file.write_text(text.replace("[32, 48, 64, 96, 128]", "[32, 48]"))
        words += ["--data.fables.stories=200", "--data.fables.val_stories=10"]
    done = execute(clone, words)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.strip()


def first_run(clone):
    execute(clone, ["run.py", "experiments/base.yaml", *SHORT])
    return next((clone / "runs").glob("base-*"))


def execute(clone, words):
    env = {**environment(), "PYTHONPATH": str(clone)}
    return subprocess.run([sys.executable, *words], cwd=clone, env=env, capture_output=True,
                          text=True)


def test_files_that_the_readme_names_exist():
    for name in re.findall(r"`((?:experiments|sweeps|tests|slm|analysis)/[\w./-]*)`", TEXT):
        assert (ROOT / name).exists(), name
