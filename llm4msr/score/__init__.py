"""Lists of each user's best items, made offline."""
