"""`ray job submit --working-dir . -- python -m jobs.prepare CONFIG`: the same as `llm4msr prepare CONFIG`."""

from llm4msr.cli import main

if __name__ == "__main__":
    main("prepare")
