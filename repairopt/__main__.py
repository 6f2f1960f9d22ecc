"""``python -m repairopt``: the command line."""

from .commandline.main import main

main()
