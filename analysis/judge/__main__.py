import sys

from analysis.judge import main

sys.exit(main(sys.argv[1:]))
