"""As much of vLLM as its plugins for loading meet, simulated: names and calls of 0.32, and no model. The real one is too large for every test."""
