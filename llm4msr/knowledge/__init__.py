"""From prompts to stored vectors: the frozen LLM is asked once, offline."""
