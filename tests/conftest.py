"""What every test shares: one CPU thread, and the folder of real data where there is one."""
from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: also for subprocesses

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
# Started first, since a file stays on one worker: else the longest would be waited for at the end.
LONG = ("test_resume", "test_sweep_wandb", "test_notebooks", "test_real_stories",
        "test_sweep_slurm", "test_readme", "test_sweep_run", "test_mirror")

# Where tests are started in the background SIGINT is ignored, and so it would be in the processes
# whose Ctrl-C is tested: a handler in Python is reset to the default when they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, all else in its order."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of real data: SLM_REFERENCE_DATA, else ../shared/data beside the repository."""
    given = os.environ.get("SLM_REFERENCE_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no reference data: {given or '../shared/data'} is not there (set "
                    "SLM_REFERENCE_DATA to a folder with tinystories/ and chinchilla/)")
    return folder
