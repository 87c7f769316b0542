"""Fresh codes of users who are active now, from an LLM that is kept open: between offline runs and a request."""
