"""Reinforcement learning end to end on one small host: tiny model, real parts."""
