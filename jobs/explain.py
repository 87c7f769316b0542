"""`ray job submit --working-dir . -- python -m jobs.explain CONFIG`: the same as `llm4msr explain CONFIG`."""

from llm4msr.cli import main

if __name__ == "__main__":
    main("explain")
