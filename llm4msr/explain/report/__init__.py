"""What the report of `llm4msr explain` shows, one module a section: plain numbers, computed without Ray.

Read along the page: `scenarios`, `users`, `effect`, `cases` (single users), then `page`, which writes the HTML. All of
them take an `Opened` run; what a level of knowledge does to a logit is measured by `ablation`.
"""
