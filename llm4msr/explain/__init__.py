"""What a model gains, and for whom: a report on a finished run, and an explorer for single users."""
