"""Text encoders: CLIP, T5, and a small encoder that is trained together with the network."""
