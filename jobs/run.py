"""`ray job submit --working-dir . -- python -m jobs.run CONFIG`: the same as `llm4msr run CONFIG`."""

from llm4msr.cli import main

if __name__ == "__main__":
    main("run")
