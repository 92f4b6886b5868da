"""SpinMeRound: a multiview UNet over image and normal latents, conditioned on clean given views, rays and an identity."""
