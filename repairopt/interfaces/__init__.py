"""Ways in and out: spec files, command line, scikit-learn, Hugging Face, trackers, pytest, conformance checks."""
