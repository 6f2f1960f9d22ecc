"""Parts of one solve: the answer, back ends, memory, isolation, scaling, recheck; see :mod:`repairopt.solve`."""
