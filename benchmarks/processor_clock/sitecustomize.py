"""Python reads this at its start where the folder is on its path: limits of time count the processor's time."""

import time

time.perf_counter = time.process_time
