"""Why a model ranks as it does: a report on a finished run, and an explorer for single users."""
