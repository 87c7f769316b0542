"""`python -m llm4msr VERB CONFIG`: the command line, for `ray job submit`."""

from llm4msr.cli.main import main

main()
