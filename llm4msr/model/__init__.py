"""The nets, in plain torch."""
