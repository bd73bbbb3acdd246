from analysis.judge import main
from slm.screen import command

command(main)
