"""The explorer: a page that shows what knowledge does to a user's ranking, and what another history would do."""
