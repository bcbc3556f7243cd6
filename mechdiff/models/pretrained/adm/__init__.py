"""guided-diffusion's networks (ADM), improved-diffusion's and P2 weighting's."""
