"""`ray job submit --working-dir . -- python -m jobs.export CONFIG`: the same as `llm4msr export CONFIG`."""

from llm4msr.cli import main

if __name__ == "__main__":
    main("export")
