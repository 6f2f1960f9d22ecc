"""``python -m repairopt``: the command line."""

from repairopt.interfaces.commandline.main import main

main()
