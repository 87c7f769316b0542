"""`ray job submit --working-dir . -- python -m jobs.run CONFIG`: the same as `python -m llm4msr run CONFIG`."""

from llm4msr.cli.main import main

if __name__ == "__main__":
    main("run")
