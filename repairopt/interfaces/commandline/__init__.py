"""The command ``repairopt``. torch and the solvers are loaded by the commands that need them, so that help is quick."""
