"""Gaussian diffusion: noise schedules, forward process, losses, samplers, closed-form denoisers."""
