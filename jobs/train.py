"""`ray job submit --working-dir . -- python -m jobs.train CONFIG`: the same as `llm4msr train CONFIG`."""

from llm4msr.cli import main

if __name__ == "__main__":
    main("train")
