from analysis.report import main
from slm.screen import command

command(main)
