"""`python -m llm4msr VERB CONFIG`: the command line, for `ray job submit` too."""

from llm4msr.cli.main import main

if __name__ == "__main__":
    main()
