"""`ray job submit --working-dir . -- python -m jobs.evaluate CONFIG`: the same as `llm4msr evaluate CONFIG`."""

from llm4msr.cli import main

if __name__ == "__main__":
    main("evaluate")
