"""diffusers' `UNet2DModel`, read and written, and its schedulers."""
