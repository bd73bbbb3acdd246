from analysis.predict import main
from slm.screen import command

command(main)
