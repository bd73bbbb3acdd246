"""The command of the studies; see the package."""
import argparse
import importlib
import sys

from analysis.studies import STUDIES
from slm.errors import UserError
from slm.screen import command


def function(study: str, name: str):
    """train or write of a study: of its module, or where it is a package of that package's module
    train or page."""
    found = importlib.import_module(f"analysis.studies.{study}")
    if hasattr(found, "__path__"):
        part = {"train": "train", "write": "page"}[name]
        found = importlib.import_module(f"{found.__name__}.{part}")
    return getattr(found, name)


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.studies", allow_abbrev=False,
                                     description="write the page of a study from its records")
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--train", action="store_true", help="train its runs first (what is done "
                        "already is not done again); the sweep files say how long it takes")
    options = parser.parse_args(args)
    try:
        if options.train:
            function(options.study, "train")()
        for path in function(options.study, "write")():
            print(path)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    command(main)
