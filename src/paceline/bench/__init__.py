"""Measurements on held-out prompts: losslessness, acceptance, speed. Ratios come from interleaved runs, and medians."""
