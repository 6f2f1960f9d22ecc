"""``python -m repairopt``: the command line."""

from repairopt.interfaces.commandline.cli import main

main()
