"""Training on Ray Train, and measuring."""
