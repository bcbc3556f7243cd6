"""denoising_diffusion_pytorch's `Unet` (lucidrains)."""
