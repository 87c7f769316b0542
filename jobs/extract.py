"""`ray job submit --working-dir . -- python -m jobs.extract CONFIG`: the same as `llm4msr extract CONFIG`."""

from llm4msr.cli import main

if __name__ == "__main__":
    main("extract")
