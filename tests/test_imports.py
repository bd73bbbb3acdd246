"""The library starts without what only some runs need, and training never holds W&B."""
import subprocess
import sys

from tiny import ROOT, environment, write_spec

HEAVY = "{'wandb', 'datasets', 'matplotlib', 'transformers', 'pandas'}"


def execute(code, cwd):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment(),
                          capture_output=True, text=True)


def test_every_module_imports_without_the_heavy_packages():
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in ROOT.glob("slm/**/*.py")
             if p.name not in ("__main__.py", "mirror_child.py")]
    done = execute(f"import importlib, sys\n"
                   f"for n in {sorted(names)!r}: importlib.import_module(n)\n"
                   f"print(sorted({HEAVY} & set(sys.modules)))", ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_training_run_imports_neither_wandb_nor_the_compiler(tmp_path):
    """With W&B's mirror on, and with Muon, whose AdamW is used too."""
    spec = write_spec(tmp_path, track__wandb="offline", train__steps=4, optim__name="muon")
    done = execute(f"import sys, run; c = run.main([{str(spec)!r}])\n"
                   "print(c, 'wandb' in sys.modules, 'torch._dynamo' in sys.modules)", tmp_path)
    assert done.stdout.splitlines()[-1] == "0 False False", done.stdout + done.stderr
    assert list((tmp_path / "runs").glob("*/wandb/offline-run-*"))
