"""Released models in the format of diffusers: load, fine-tune and save them."""
