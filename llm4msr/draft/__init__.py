"""A first config, guessed from the files of someone's own data: which table is what, which column is what, and why."""
