import sys

from analysis.predict import main

sys.exit(main(sys.argv[1:]))
