"""The explorer: a page on which one asks what knowledge does to a user's ranking, and what another history would do."""
