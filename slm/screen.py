"""The few calm lines a person sees. Text goes above the progress bar, never through it."""
from __future__ import annotations

import os
import sys


def say(line: str = "") -> None:
    """Print one line on stdout, above a progress bar if one is drawn; silent on ranks > 0."""
    if int(os.environ.get("RANK", "0")) > 0:
        return
    tqdm = sys.modules.get("tqdm")  # only if somebody draws a bar: importing it costs 30 ms
    if tqdm is not None and getattr(tqdm.tqdm, "_instances", None):
        tqdm.tqdm.write(line, file=sys.stdout)
    else:
        print(line, flush=True)
