"""What every test shares: one CPU thread, and the folder of real data where there is one."""
from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: also for subprocesses

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


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
