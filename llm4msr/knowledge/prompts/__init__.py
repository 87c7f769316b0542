"""The templates of prompts, and prompts from prepared data."""
