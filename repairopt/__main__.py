"""``python -m repairopt``: the command line."""

from repairopt.interfaces.commandline.commands import main

main()
