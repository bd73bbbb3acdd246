"""The study's command; see the package."""
import argparse
import sys

from slm.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.zipf", description="whether the "
                                     "exponents of a law follow from the Zipf exponent of its data",
                                     allow_abbrev=False)
    parser.add_argument("--train", action="store_true", help="train the runs anew first (what is "
                        "done already is not done again): about half an hour of one core")
    options = parser.parse_args()
    try:
        if options.train:
            from analysis.zipf.train import train
            train()
        from analysis.zipf.page import write
        for path in write():
            print(path)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
