"""Training on Ray, and measuring."""
