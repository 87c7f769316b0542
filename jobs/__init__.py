"""What is submitted to a cluster beside `python -m llm4msr VERB CONFIG`: the whole path, and the quickstart."""
