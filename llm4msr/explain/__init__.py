"""Why a model ranks as it does: a report for a run, and an explorer for single users."""
