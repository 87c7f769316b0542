"""One entry point per stage for `ray job submit -- python -m jobs.<stage> CONFIG`."""
