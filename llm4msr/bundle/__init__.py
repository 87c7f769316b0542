"""What serving reads of an export, and the ranker that scores with it."""
