"""Text encoders: CLIP, T5, and a small one that is trained with the network."""
