"""`ray job submit --working-dir . -- python -m jobs.refresh CONFIG`: the same as `llm4msr refresh CONFIG`."""

from llm4msr.cli import main

if __name__ == "__main__":
    main("refresh")
